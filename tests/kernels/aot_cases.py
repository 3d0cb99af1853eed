"""The calls that are compiled ahead of time: a kernel joins with a line for each of its variants."""

from collections.abc import Callable
from typing import Any

import torch

from accel.kernels.block_attention import triton as attention
from accel.kernels.block_mass import triton as mass
from accel.kernels.block_statistics import triton as statistics
from accel.kernels.delta import triton as delta
from accel.kernels.int8 import triton as int8
from accel.kernels.nvfp4 import triton as nvfp4
from accel.kernels.nvfp4_linear import NATIVE
from accel.kernels.nvfp4_linear import triton as nvfp4_linear
from accel.kernels.rotation import triton as rotation
from tests.aot import ARCHS, NARROW_LOAD, WIDE_LOAD, WIDE_STORE, Case

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32

# Hidden states of 4096 tokens and 1536 channels for both guidance branches.
USUAL = (2, 4096, 1536)
# More than 2³¹ elements, where 32-bit offsets would wrap round.
HUGE = (1, 3 << 20, 1024)


def meta(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def without_text(dtype: torch.dtype) -> torch.Tensor:
    """The picture tokens of a sequence that starts with 226 text tokens: contiguous in each batch element."""
    return meta(dtype, 2, 226 + 4096, 1536)[:, 226:]


def compute(name: str, output: torch.Tensor, input: torch.Tensor, previous: torch.Tensor | None = None) -> Case:
    kernel = "_compute_delta"
    return Case(
        f"compute_delta-{name}",
        lambda arch: delta.compute_delta(output, input, previous),
        requires={kernel: (WIDE_LOAD, WIDE_STORE)},
        forbids={kernel: (NARROW_LOAD,)},
    )


def statistics_alone(name: str, hidden: torch.Tensor) -> Case:
    kernel = "_compute_delta"
    return Case(
        f"delta_statistics-{name}",
        lambda arch: delta.delta_statistics(hidden, hidden),
        requires={kernel: (WIDE_LOAD,)},
        forbids={kernel: (NARROW_LOAD, r"st\.global[\w.:]*\.(b16|v[248]\.)")},
    )


def apply(name: str, input: torch.Tensor, change: torch.Tensor, slope: torch.Tensor | None = None) -> Case:
    kernel = "_apply_delta"
    return Case(
        f"apply_delta-{name}",
        lambda arch: delta.apply_delta(input, change, slope, 2),
        requires={kernel: (WIDE_LOAD, WIDE_STORE)},
        forbids={kernel: (NARROW_LOAD,)},
    )


def update(name: str, hidden: torch.Tensor, held: torch.Tensor, slope: torch.Tensor | None) -> Case:
    kernel = "_compute_delta"
    return Case(
        f"update_delta-{name}",
        lambda arch: delta.update_delta(hidden, hidden, held, slope, 3),
        requires={kernel: (WIDE_LOAD, WIDE_STORE)},
        forbids={kernel: (NARROW_LOAD,)},
    )


def tokens(dtype: torch.dtype, size: int) -> torch.Tensor:
    """A long video's queries, keys or values: 12 heads, and a last block that is short."""
    return meta(dtype, 2, 32_760, 12, size)


def sizes(block: int) -> torch.Tensor:
    return meta(torch.int32, 2, -(-32_760 // block))


def block_statistics(
    name: str, dtype: torch.dtype, size: int, block: int = 64, spread: bool = False, **more: Any
) -> Case:
    """With `spread`, with sizes too."""
    key, value = tokens(dtype, size), tokens(dtype, size)
    held = sizes(block) if spread else None
    return Case(
        f"block_statistics-{name}",
        lambda arch: statistics.block_statistics(key, value, block, held, True, spread),
        forbids={"_block_statistics": (r"\.tf32",)},
        **more,
    )


def block_mass(name: str, dtype: torch.dtype, size: int, block: int = 64, padded: bool = False, **more: Any) -> Case:
    query, key = tokens(dtype, size), tokens(dtype, size)
    lse, means = meta(F32, 2, 12, 32_760), meta(F32, *sizes(block).shape, 12, size)
    held = sizes(block) if padded else None
    return Case(
        f"block_mass-{name}",
        lambda arch: mass.block_mass(query, key, lse, block, held, held, means, 0.1),
        forbids={"_block_mass": (r"\.tf32",), "_tail_mass": (r"\.tf32",)},
        **more,
    )


def block_attention(
    name: str, dtype: torch.dtype, size: int, beside: str = "", block: int = 64, *, padded: bool = False, **more: Any
) -> Case:
    """`beside` names what is attended to besides lists of 40 blocks: some of tail, hybrid, prior."""
    query = tokens(dtype, size) if padded else meta(dtype, 2, 32_768, 12, size)
    held = sizes(block) if padded else None
    batch, length, heads, _ = query.shape
    rows = sizes(block).shape[1]
    tail, hybrid, prior = (word in beside for word in ("tail", "hybrid", "prior"))
    mean = meta(F32, batch, rows, heads, size) if tail or hybrid else None
    return Case(
        f"block_attention-{name}",
        lambda arch: attention.block_attention(
            query,
            query,
            query,
            meta(torch.int32, batch, heads, rows, 40),
            meta(torch.int32, batch, heads, rows),
            block,
            held,
            mean,
            mean,
            meta(F32, batch, heads, size, size) if hybrid else None,
            query if prior else None,
            meta(F32, batch, heads, length) if prior else None,
            0.1,
        ),
        **more,
    )


# What multiplies the matrices, and what reads ahead while it does, where each is at hand.
TENSOR_CORES = {80: r"mma\.sync", 89: r"mma\.sync", 90: r"wgmma\.mma_async", 100: r"tcgen05\.mma", 120: r"mma\.sync"}
AHEAD = r"cp\.async\.c[ag]"
# Bytes that attention may store and load where a thread's 255 registers are all there is, by what is attended to
# besides the lists, in half types; the largest of Triton 3.6, 3.7 and 3.9 is 332. The loop over the lists alone needs
# none, and float32 none either.
SPILLS = {"": 0, "tail": 64, "hybrid": 64, "hybrid-prior": 384}
# Compute capability, what is attended to besides the lists, head size, dtype, block size. Each pair of values is there,
# and the widest head has everything beside its lists in bfloat16 on sm_80 to sm_100.
ATTENTION: list[tuple[int, str, int, torch.dtype, int]] = [
    (80, "", 64, F16, 64),
    (80, "tail", 128, BF16, 64),
    (80, "hybrid", 64, F32, 64),
    (80, "hybrid-prior", 128, BF16, 64),
    (80, "hybrid-prior", 128, F32, 128),
    (89, "", 128, BF16, 64),
    (89, "tail", 64, F32, 128),
    (89, "hybrid", 128, F16, 64),
    (89, "hybrid-prior", 128, BF16, 64),
    (90, "", 64, F32, 64),
    (90, "tail", 64, BF16, 128),
    (90, "hybrid", 112, F16, 64),
    (90, "hybrid-prior", 128, BF16, 64),
    (90, "hybrid-prior", 128, F32, 128),
    (100, "", 128, F32, 64),
    (100, "tail", 128, F16, 64),
    (100, "hybrid", 64, BF16, 128),
    (100, "hybrid-prior", 128, BF16, 64),
    (100, "hybrid-prior", 128, F32, 128),
    (120, "", 128, F16, 128),
    (120, "tail", 128, F32, 64),
    (120, "hybrid", 64, BF16, 64),
    (120, "hybrid-prior", 64, F16, 64),
]


def attention_cell(arch: int, beside: str, size: int, dtype: torch.dtype, block: int) -> Case:
    half = dtype != F32
    return block_attention(
        f"{beside or 'listed'}-{str(dtype).removeprefix('torch.')}-{size}-by-{block}-on-{arch}",
        dtype,
        size,
        beside,
        block,
        padded="prior" in beside,
        requires={"attend": (TENSOR_CORES[arch], AHEAD, WIDE_LOAD, WIDE_STORE)} if half else {},
        # Products of float32 that are shortened.
        forbids={} if half else {"attend": (r"\.tf32",)},
        archs=(arch,),
        spills={arch: _attention_spills(arch, beside, half)},
    )


def _attention_spills(arch: int, beside: str, half: bool) -> int:
    return SPILLS[beside] if half and arch not in (90, 100) else 0


def linear(arch: int, instruction: str, *, channels: int = 5120) -> Case:
    """INT8 activations of a long video and a feed-forward weight."""
    return Case(
        f"int8_linear-{channels}-on-{arch}",
        lambda arch: int8.int8_linear(
            meta(torch.int8, 32_760, channels),
            meta(F32, 32_760),
            meta(torch.int8, 13_824, channels),
            meta(F32, 13_824),
            meta(BF16, 13_824),
            BF16,
        ),
        requires={"_int8_linear": (instruction,)},
        forbids={"_int8_linear": (r"\.tf32", r"fma\.rn\.f32")},
        archs=(arch,),
    )


def format_case(kernel: str, variant: str, launch: Callable[[], object], archs: tuple[int, ...] = ARCHS) -> Case:
    """A kernel that makes or reads a number format: bit for bit, so without fused multiplication and addition."""
    return Case(
        f"{kernel.removeprefix('_')}-{variant}",
        lambda arch: launch(),
        requires={kernel: (WIDE_LOAD,)},
        forbids={kernel: (r"fma\.rn\.f32",)},
        archs=archs,
    )


def stored(rows: int, channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix in NVFP4."""
    return (
        meta(torch.uint8, rows, channels // 2),
        meta(torch.float8_e4m3fn, rows, channels // 16),
        meta(F32),
    )


def nvfp4_product(arch: int, *instructions: str, channels: int = 5120) -> Case:
    """Activations and a feed-forward weight, both in NVFP4."""
    rows, outputs = 32_760, 13_824
    return Case(
        f"nvfp4_linear-{channels}-on-{arch}",
        lambda arch: nvfp4_linear.nvfp4_linear(
            *stored(rows, channels), *stored(outputs, channels), meta(BF16, outputs), BF16
        ),
        requires={"_native_nvfp4_linear" if arch in NATIVE else "_nvfp4_linear": instructions},
        forbids={},
        archs=(arch,),
    )


def weight_product(arch: int, dtype: torch.dtype) -> Case:
    """Activations as they are, a feed-forward weight in NVFP4."""
    kernel = "_nvfp4_weight_linear"
    return Case(
        f"nvfp4_weight_linear-{str(dtype).removeprefix('torch.')}-on-{arch}",
        lambda arch: nvfp4_linear.nvfp4_weight_linear(
            meta(dtype, 32_760, 5120), *stored(13_824, 5120), meta(dtype, 13_824)
        ),
        requires={kernel: (TENSOR_CORES[arch],)} if dtype != F32 else {},
        forbids={kernel: (r"\.tf32",)},
        archs=(arch,),
    )


# Triton 3.6 and 3.7 have no tcgen05 for integers: sm_100 runs the instruction of sm_80.
INT8_CORES = {
    80: r"mma\.sync[\w.]*\.s8\.s8",
    89: r"mma\.sync[\w.]*\.s8\.s8",
    90: r"wgmma\.mma_async[\w.]*\.s8\.s8",
    100: r"(mma\.sync[\w.]*\.s8\.s8|tcgen05\.mma[\w.:]*kind::i8)",
    103: r"mma\.sync[\w.]*\.s8\.s8",
    120: r"mma\.sync[\w.]*\.s8\.s8",
}
ACTIVATIONS = meta(BF16, 32_760, 5120)
SCALE = meta(F32)
STORED = stored(5120, 5120)
# What multiplies two NVFP4 matrices, and brings the scales from shared memory to where it reads them; where nothing
# does, both are decoded.
DATACENTER = (r"tcgen05\.mma[\w.:]*mxf4nvf4", r"tcgen05\.cp", r"cp\.async\.bulk\.tensor\.5d", AHEAD)
NVFP4_CORES = {arch: (cores,) for arch, cores in TENSOR_CORES.items()} | {
    100: DATACENTER,
    103: DATACENTER,
    120: (r"mma\.sync[\w.:]*mxf4nvf4", r"cp\.async\.bulk\.tensor\.5d", AHEAD),
}


def quantize_into_tiles() -> object:
    return nvfp4.quantize_nvfp4(ACTIVATIONS, SCALE, False, True, swizzled=True)


CASES = [
    *(linear(arch, instruction) for arch, instruction in INT8_CORES.items()),
    linear(90, "", channels=77),
    format_case("_rotate", "bf16", lambda: rotation.rotate(ACTIVATIONS, 1.0, BF16)),
    format_case("_quantize_int8", "rotated", lambda: int8.quantize_int8(ACTIVATIONS, True)),
    format_case("_quantize_int8", "long", lambda: int8.quantize_int8(meta(F32, 32_760, 13_824), True)),
    format_case("_quantize_nvfp4", "rotated", lambda: nvfp4.quantize_nvfp4(ACTIVATIONS, SCALE, False, True)),
    format_case("_quantize_nvfp4", "by-error", lambda: nvfp4.quantize_nvfp4(ACTIVATIONS, SCALE, True, False)),
    format_case("_quantize_nvfp4", "tiled", quantize_into_tiles, NATIVE),
    Case("dequantize_nvfp4", lambda arch: nvfp4.dequantize_nvfp4(*STORED, BF16), {}, {}),
    Case(
        "nvfp4_to_int8",
        lambda arch: nvfp4.nvfp4_to_int8(*STORED),
        requires={},
        forbids={"_nvfp4_to_int8": (r"fma\.rn\.f32",)},
    ),
    *(nvfp4_product(arch, *instructions) for arch, instructions in NVFP4_CORES.items()),
    nvfp4_product(100, *DATACENTER[:3], channels=1920),
    *(weight_product(arch, BF16) for arch in TENSOR_CORES),
    weight_product(80, F16),
    weight_product(90, F32),
    compute("bf16", meta(BF16, *USUAL), meta(BF16, *USUAL)),
    compute("f32-previous", meta(F32, *USUAL), meta(F32, *USUAL), meta(F32, *USUAL)),
    compute("f16-strided-previous", without_text(F16), without_text(F16), meta(F16, *USUAL)),
    compute("bf16-huge", meta(BF16, *HUGE), meta(BF16, *HUGE)),
    statistics_alone("bf16", meta(BF16, *USUAL)),
    apply("bf16", meta(BF16, *USUAL), meta(BF16, *USUAL)),
    apply("bf16-to-f32-strided", without_text(F32), meta(BF16, *USUAL)),
    apply("f16-huge", meta(F16, *HUGE), meta(F16, *HUGE)),
    apply("bf16-slope", *[meta(BF16, *USUAL)] * 3),
    update("bf16", *[meta(BF16, *USUAL)] * 3),
    update("f32-held-bf16", meta(F32, *USUAL), meta(BF16, *USUAL), None),
    Case("compute_delta-odd", lambda arch: delta.compute_delta(*[meta(BF16, 3, 333)] * 3), {}, {}),
    Case("apply_delta-odd", lambda arch: delta.apply_delta(*[meta(F32, 3, 333)] * 2, None, 0), {}, {}),
    Case(
        "block_means",
        lambda arch: statistics.block_means(tokens(BF16, 128), 64, None),
        {"_block_means": (WIDE_LOAD,)},
        {},
    ),
    *(
        case
        for arch, cores in TENSOR_CORES.items()
        for size in (64, 128)
        for case in (
            block_statistics(
                f"bf16-{size}-on-{arch}", BF16, size, requires={"_block_statistics": (cores,)}, archs=(arch,)
            ),
            block_mass(f"bf16-{size}-on-{arch}", BF16, size, requires={"_block_mass": (cores, AHEAD)}, archs=(arch,)),
        )
    ),
    block_statistics("f16-128-spread", F16, 128, spread=True, requires={}, archs=(80, 90, 120), spills={120: 32}),
    block_statistics("f16-64-spread", F16, 64, spread=True, requires={}, archs=(89, 100)),
    block_mass("f16-128-sizes", F16, 128, padded=True, requires={}, archs=(89, 100)),
    block_mass("f16-64-sizes", F16, 64, padded=True, requires={}, archs=(80, 90, 120)),
    block_statistics("bf16-128-large-spread", BF16, 128, 128, spread=True, requires={}, archs=(80, 100, 120)),
    block_mass("bf16-128-large", BF16, 128, 128, padded=True, requires={}, archs=(90, 100)),
    block_statistics("f32-128-large-spread", F32, 128, 128, spread=True, requires={}, archs=(80, 90, 100)),
    block_mass("f32-128-large", F32, 128, 128, padded=True, requires={}, archs=(80, 90)),
    block_mass("f32-64", F32, 64, requires={}, archs=(80, 100), spills={80: 32}),
    *(attention_cell(*cell) for cell in ATTENTION),
    Case(
        "dense_attention",
        lambda arch: attention.dense_attention(*[tokens(BF16, 128)] * 3, sizes(64), 64, 0.1),
        requires={},
        forbids={},
        archs=(90,),
    ),
]
