"""The calls that are compiled ahead of time: a kernel joins with a line for each of its variants."""

import torch

from accel.kernels.delta import triton as delta
from tests.aot import NARROW_LOAD, WIDE_LOAD, WIDE_STORE, Case

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


def apply(name: str, input: torch.Tensor, change: torch.Tensor) -> Case:
    kernel = "_apply_delta"
    return Case(
        f"apply_delta-{name}",
        lambda arch: delta.apply_delta(input, change),
        requires={kernel: (WIDE_LOAD, WIDE_STORE)},
        forbids={kernel: (NARROW_LOAD,)},
    )


CASES = [
    compute("bf16", meta(BF16, *USUAL), meta(BF16, *USUAL)),
    compute("f32-previous", meta(F32, *USUAL), meta(F32, *USUAL), meta(F32, *USUAL)),
    compute("f16-strided-previous", without_text(F16), without_text(F16), meta(F16, *USUAL)),
    compute("bf16-huge", meta(BF16, *HUGE), meta(BF16, *HUGE)),
    apply("bf16", meta(BF16, *USUAL), meta(BF16, *USUAL)),
    apply("bf16-to-f32-strided", without_text(F32), meta(BF16, *USUAL)),
    apply("f16-huge", meta(F16, *HUGE), meta(F16, *HUGE)),
    Case("compute_delta-odd", lambda arch: delta.compute_delta(*[meta(BF16, 3, 333)] * 3), {}, {}),
    Case("apply_delta-odd", lambda arch: delta.apply_delta(*[meta(F32, 3, 333)] * 2), {}, {}),
]
