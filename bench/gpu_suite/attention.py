"""Sparse attention against the dense backends of torch and against FlexAttention with the same blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from accel.kernels.block_attention import block_attention
from accel.kernels.block_statistics import block_statistics
from accel.measure.timing import Case, take_turns
from bench.gpu_suite.cells import Cells
from bench.gpu_suite.figures import answering, figures, require_within, said
from bench.gpu_suite.problems import BOUNDS, choice, relative, waves
from bench.kernels.sizes import SIZES

# (heads, tokens, head size).
SHAPES = {
    name: (SIZES[name].heads, SIZES[name].tokens, SIZES[name].head_size)
    for name in ("wan-14b-720p", "wan-1.3b-480p", "hunyuan-video-720p", "flux-1024", "demo")
}
# No multiple of a block, as those of the videos.
TINY = {"tiny": (2, 500, 64)}
# Those that a method is used with first, for a run that is cut off.
DENSITIES = (0.125, 0.25, 0.0625, 0.5, 1.0)
DENSITIES_OF_LARGE_BLOCKS = (0.125, 0.25)
TAILS = ("none", "zeroth", "hybrid")
DENSE = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
# FlexAttention's own tiles are higher than blocks of 64, which it refuses then; these are its widths and stages.
_FLEX_OPTIONS: dict[int, dict[str, int]] = {
    64: {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3},
    128: {},
}


def run(cells: Cells, device: str, tiny: bool) -> None:
    """One cell for the dense backends of each shape, and one for each size of blocks and density."""
    for name, shape in (TINY if tiny else SHAPES).items():
        cells.run(f"{name}/dense", partial(_dense_backends, shape, device), shape=shape)
        for block, densities in ((64, DENSITIES), (128, DENSITIES_OF_LARGE_BLOCKS)):
            for density in densities:
                measure = partial(_one, shape, block, density, device)
                cells.run(f"{name}/block{block}/{density:g}", measure, shape=shape, block=block, density=density)


def sparse(query: Tensor, key: Tensor, value: Tensor, block: int, density: float, tail: str) -> Tensor:
    """One call as a method makes it: statistics, scores, the best blocks of each row, attention."""
    blocks, counts = choice(query, key, block, density)
    beside = tail_of(key, value, block, tail)
    return block_attention(query, key, value, blocks, counts, block_size=block, **beside)[0]


def tail_of(key: Tensor, value: Tensor, block: int, tail: str) -> dict[str, Any]:
    """The arguments of block_attention for a tail: "none", "zeroth" or "hybrid"."""
    if tail == "none":
        return {}
    found = block_statistics(key, value, block, first_order=tail == "hybrid")
    return {"mean_key": found.mean_key, "mean_value": found.mean_value, "first_order": found.first_order}


def _sequences(shape: tuple[int, int, int], device: str) -> list[Tensor]:
    heads, tokens, size = shape
    return waves(tokens, heads, size, torch.bfloat16 if _cuda(device) else torch.float32, device)


def _cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def _dense(given: list[Tensor], backend: str | None) -> Case:
    # In the layout that diffusers' processors have; the transposition is a view.
    query, key, value = (x.transpose(1, 2) for x in given)

    def call() -> Tensor:
        if backend is None:
            return scaled_dot_product_attention(query, key, value).transpose(1, 2)
        with sdpa_kernel(DENSE[backend]):
            return scaled_dot_product_attention(query, key, value).transpose(1, 2)

    return call


def _dense_makers(given: list[Tensor], device: str) -> dict[str, Callable[[], Case]]:
    return {name: partial(_dense, given, name) for name in DENSE} if _cuda(device) else {}


def _dense_backends(shape: tuple[int, int, int], device: str) -> dict[str, Any]:
    given = _sequences(shape, device)
    cases, refused = answering({"default": partial(_dense, given, None), **_dense_makers(given, device)})
    times = take_turns(cases, device)
    return {"rows": {n: {**figures(t), **_rate(shape, 1.0, t.median)} for n, t in times.items()}, "refused": refused}


def _one(shape: tuple[int, int, int], block: int, density: float, device: str) -> dict[str, Any]:
    """Each tail, with all that it needs and as the kernel alone, beside the dense backends and FlexAttention.

    Speed-ups are over the fastest dense backend in the same rounds; errors are against dense attention, must be finite,
    and where no block is left out both are within a kernel's bound of what is exact.
    """
    given = _sequences(shape, device)
    query, key, value = given
    blocks, counts = choice(query, key, block, density)
    makers = _dense_makers(given, device)
    if _cuda(device):
        makers["flex"] = lambda: _flex(given, blocks, counts, block)
    rivals, refused = answering(makers)
    dense = [name for name in rivals if name in DENSE] or ["default"]
    cases = rivals if dense != ["default"] else {"default": _dense(given, None), **rivals}
    for tail in TAILS:
        beside = tail_of(key, value, block, tail)
        cases[f"{tail}, kernel"] = lambda b=beside: block_attention(
            query, key, value, blocks, counts, block_size=block, **b
        )[0]
        cases[f"{tail}, all"] = lambda t=tail: sparse(query, key, value, block, density, t)
    wanted = cases[dense[0]]()
    errors = {name: relative(case(), wanted) for name, case in cases.items()}
    del wanted
    both = 2 * BOUNDS[query.dtype]
    if "flex" in cases and not abs(errors["flex"] - errors["none, kernel"]) < both:
        # The same blocks have the same error; a rival that is wrong is none.
        refused["flex"] = f"its error is {errors.pop('flex'):.2e}, that of the same blocks {errors['none, kernel']:.2e}"
        del cases["flex"]
    require_within(errors, dict.fromkeys(errors if density == 1.0 else dense, both))
    times = take_turns(cases, device)
    best = min(dense, key=lambda name: times[name].median)
    kept = float(counts.float().mean()) / -(-shape[1] // block)
    rows = {
        name: {
            **figures(time),
            **_rate(shape, 1.0 if name in dense else kept, time.median),
            **({} if name == best else {"speed_up": said(times[best], time)}),
            "error": round(errors[name], 5),
        }
        for name, time in times.items()
    }
    if "flex" in times:
        rows["none, kernel"]["over_flex"] = said(times["flex"], times["none, kernel"])
    return {"rows": rows, "kept": round(kept, 5), "base": best, "refused": refused}


def flex_mask(blocks: Tensor, counts: Tensor, tokens: int, block: int) -> BlockMask:
    """FlexAttention's mask for the lists of block_attention: all blocks whole, so that it evaluates no mask of its own.

    FlexAttention reads lists as wide as there are blocks, and partial blocks apart from whole ones: there are none.
    """
    rows = blocks.shape[2]
    lists = torch.zeros(*blocks.shape[:3], rows, dtype=torch.int32, device=blocks.device)
    lists[..., : blocks.shape[3]] = blocks
    return BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(lists),
        counts,
        lists,
        BLOCK_SIZE=block,
        seq_lengths=(tokens, tokens),
    )


def _flex(given: list[Tensor], blocks: Tensor, counts: Tensor, block: int) -> Case:
    query, key, value = (x.transpose(1, 2) for x in given)
    mask = flex_mask(blocks, counts, query.shape[2], block)
    compiled = _compiled_for((tuple(query.shape), block))
    return lambda: compiled(query, key, value, block_mask=mask, kernel_options=_FLEX_OPTIONS[block]).transpose(1, 2)


_flex_of: dict[object, Callable[..., Tensor]] = {}


def _compiled_for(key: object) -> Callable[..., Tensor]:
    """FlexAttention compiled for one shape, as it is fastest; a new shape would turn to dynamic ones by itself."""
    if key not in _flex_of:
        torch._dynamo.reset()
        _flex_of.clear()
        _flex_of[key] = torch.compile(flex_attention, dynamic=False)
    return _flex_of[key]


def _rate(shape: tuple[int, int, int], density: float, seconds: float) -> dict[str, float]:
    """What the two products of the kept blocks amount to."""
    heads, tokens, size = shape
    return {"tflops": round(4 * heads * tokens**2 * size * density / seconds / 1e12, 2)}
