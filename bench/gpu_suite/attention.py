"""Sparse attention against the dense backends of torch and against FlexAttention with the same blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from accel.kernels.block_attention import block_attention
from accel.kernels.block_statistics import block_statistics
from bench.gpu_suite.cells import Cells
from bench.gpu_suite.clock import Case, figures, take_turns
from bench.gpu_suite.problems import choice, relative, waves

# (heads, tokens, head size): Wan 2.1 1.3B and 14B at 81 frames, HunyuanVideo at 129, FLUX at 1024², the built-in model.
SHAPES = {
    "wan_1.3b_480p": (12, 32_760, 128),
    "wan_14b_720p": (40, 75_600, 128),
    "hunyuan_video_720p": (24, 118_800, 128),
    "flux_1024": (24, 4_608, 128),
    "demo": (4, 2_112, 64),
}
TINY = {"tiny": (2, 512, 64)}
DENSITIES = (1.0, 0.5, 0.25, 0.125, 0.0625)
TAILS = ("none", "zeroth", "hybrid")
BLOCK = 64
_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def run(cells: Cells, device: str, tiny: bool) -> None:
    """One cell for the dense backends of each shape, and one for each density."""
    for name, shape in (TINY if tiny else SHAPES).items():
        cells.run(f"{name}/dense", partial(_dense_backends, shape, device), shape=shape)
        for density in DENSITIES:
            cells.run(
                f"{name}/{density:g}", lambda s=shape, d=density: _one(s, d, device), shape=shape, density=density
            )


def sparse(query: Tensor, key: Tensor, value: Tensor, density: float, tail: str) -> Tensor:
    """One call as a method makes it: statistics, scores, the best blocks of each row, attention."""
    blocks, counts = choice(query, key, BLOCK, density)
    return block_attention(query, key, value, blocks, counts, block_size=BLOCK, **_beside(key, value, tail))[0]


def _beside(key: Tensor, value: Tensor, tail: str) -> dict[str, Any]:
    if tail == "none":
        return {}
    found = block_statistics(key, value, BLOCK, first_order=tail == "hybrid")
    return {"mean_key": found.mean_key, "mean_value": found.mean_value, "first_order": found.first_order}


def _sequences(shape: tuple[int, int, int], device: str) -> list[Tensor]:
    heads, tokens, size = shape
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return waves(tokens, heads, size, dtype, device)


def _dense(given: list[Tensor], backend: str | None) -> Case:
    # In the layout that diffusers' processors have; the transposition is a view.
    query, key, value = (x.transpose(1, 2) for x in given)

    def call() -> Tensor:
        if backend is None:
            return scaled_dot_product_attention(query, key, value)
        with sdpa_kernel(_BACKENDS[backend]):
            return scaled_dot_product_attention(query, key, value)

    return call


def _dense_backends(shape: tuple[int, int, int], device: str) -> dict[str, Any]:
    given = _sequences(shape, device)
    cases: dict[str, Case] = {}
    refused = {}
    for backend in _BACKENDS if torch.device(device).type == "cuda" else ():
        try:
            _dense(given, backend)()
            cases[backend] = _dense(given, backend)
        except RuntimeError as error:
            refused[backend] = " ".join(str(error).split())[:200]
    cases["default"] = _dense(given, None)
    times = take_turns(cases, device)
    rows = {name: {**figures(time), **_rate(shape, 1.0, time.median)} for name, time in times.items()}
    return {"rows": rows, "refused": refused}


def _one(shape: tuple[int, int, int], density: float, device: str) -> dict[str, Any]:
    """Each tail, with all that it needs and as the kernel alone, beside the fastest dense backend and FlexAttention."""
    given = _sequences(shape, device)
    query, key, value = given
    blocks, counts = choice(query, key, BLOCK, density)
    cases: dict[str, Case] = {"dense": _dense(given, None)}
    failed = {}
    for tail in TAILS:
        beside = _beside(key, value, tail)
        cases[f"{tail}, kernel"] = lambda b=beside: block_attention(
            query, key, value, blocks, counts, block_size=BLOCK, **b
        )[0]
        cases[f"{tail}, all"] = lambda t=tail: sparse(query, key, value, density, t)
    if torch.device(device).type == "cuda":
        for name, make in {
            "cudnn": lambda: _dense(given, "cudnn"),
            "flex": lambda: _flex(given, blocks, counts),
        }.items():
            try:
                case = make()
                case()
                cases[name] = case
            except Exception as error:
                failed[name] = " ".join(str(error).split())[:300]
    wanted = cases["dense"]().transpose(1, 2)
    errors = {name: relative(_in_layout(case(), wanted), wanted) for name, case in cases.items()}
    times = take_turns(cases, device)
    best = min(times[name].median for name in ("dense", "cudnn") if name in times)
    rows = {
        name: {
            **figures(time),
            **_rate(shape, 1.0 if name in ("dense", "cudnn") else density, time.median),
            "speed_up": round(best / time.median, 3),
            "error": errors[name],
        }
        for name, time in times.items()
    }
    return {"rows": rows, "failed": failed}


def _in_layout(out: Tensor, wanted: Tensor) -> Tensor:
    return out if out.shape == wanted.shape else out.transpose(1, 2)


def _flex(given: list[Tensor], blocks: Tensor, counts: Tensor) -> Callable[[], Tensor]:
    """FlexAttention on the same blocks, all of them full, so that it evaluates no mask."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    query, key, value = (x.transpose(1, 2).contiguous() for x in given)
    none = torch.zeros_like(counts)
    rows = blocks.shape[2]
    # FlexAttention reads index lists as wide as there are blocks.
    lists = torch.zeros(*blocks.shape[:3], rows, dtype=torch.int32, device=blocks.device)
    lists[..., : blocks.shape[3]] = blocks
    mask = BlockMask.from_kv_blocks(none, lists, counts, lists, BLOCK_SIZE=BLOCK)
    compiled = torch.compile(flex_attention)
    return lambda: compiled(query, key, value, block_mask=mask)


def _rate(shape: tuple[int, int, int], density: float, seconds: float) -> dict[str, float]:
    """What the two products of the kept blocks amount to."""
    heads, tokens, size = shape
    return {"tflops": round(4 * heads * tokens**2 * size * density / seconds / 1e12, 2)}
