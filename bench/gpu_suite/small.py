"""The operations that move memory: bytes a second against a copy in the same rounds, and against plain torch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from accel.kernels.arrangement import arrange
from accel.kernels.block_attention import dense_attention
from accel.kernels.block_mass import block_mass
from accel.kernels.block_statistics import block_means, block_statistics
from accel.kernels.delta import apply_delta, compute_delta, update_delta
from accel.kernels.selection import kept_number, top_blocks
from accel.measure.timing import Case, take_turns
from bench.gpu_suite.cells import Cells
from bench.gpu_suite.figures import figures
from bench.gpu_suite.problems import waves
from bench.kernels.sizes import SIZES, Size

BLOCK = 64


def run(cells: Cells, device: str, tiny: bool) -> None:
    """A cell for each group of operations."""
    size = Size((8, 16, 16), 4, 64, 768, "made up") if tiny else SIZES["wan-14b-480p"]
    tokens, heads, head_size = size.tokens, size.heads, size.head_size
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    cells.run("delta", partial(_delta, tokens, size.width, dtype, device), tokens=tokens, width=size.width)
    cells.run("statistics", partial(_statistics, tokens, heads, head_size, dtype, device), tokens=tokens, heads=heads)
    cells.run("search", partial(_search, tokens, heads, head_size, dtype, device), tokens=tokens, heads=heads)
    cells.run("arrangement", partial(_arrangement, size.grid, heads, head_size, dtype, device), grid=size.grid)


def _rows(cases: dict[str, tuple[Case, int]], device: str) -> dict[str, Any]:
    """Each case with the bytes that it cannot but read and write, and its share of what a plain copy moves."""
    size = (1 << 24) if torch.device(device).type == "cpu" else (1 << 30)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    cases = {"copy": (lambda: target.copy_(source), 2 * size), **cases}
    times = take_turns({name: case for name, (case, _) in cases.items()}, device)
    speed = {name: cases[name][1] / time.median for name, time in times.items()}
    return {
        "rows": {
            name: {
                **figures(time),
                "bytes": cases[name][1],
                "gb_per_s": round(speed[name] / 1e9, 1),
                "of_copy": round(speed[name] / speed["copy"], 3),
            }
            for name, time in times.items()
        }
    }


def _delta(tokens: int, width: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    output, hidden, before, slope = (torch.randn(1, tokens, width, device=device).to(dtype) for _ in range(4))
    one = output.nbytes
    return _rows(
        {
            "compute_delta": (lambda: compute_delta(output, hidden, before), 4 * one),
            "update_delta": (lambda: update_delta(output, hidden, before, slope, 2), 6 * one),
            "apply_delta": (lambda: apply_delta(hidden, before), 3 * one),
            "apply_delta, slope": (lambda: apply_delta(hidden, before, slope, 2), 4 * one),
            "torch: subtract": (lambda: output - hidden, 3 * one),
            "torch: add": (lambda: hidden + before, 3 * one),
        },
        device,
    )


def _statistics(tokens: int, heads: int, size: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    _, key, value = waves(tokens, heads, size, dtype, device)
    whole = tokens // BLOCK * BLOCK
    blocks = key[:, :whole].unflatten(1, (-1, BLOCK))
    return _rows(
        {
            "torch: mean": (lambda: blocks.mean(2, dtype=torch.float32), blocks.nbytes),
            "block_means": (lambda: block_means(key, BLOCK), key.nbytes),
            "block_statistics": (lambda: block_statistics(key, value, BLOCK, first_order=False), 2 * key.nbytes),
            "block_statistics, first order": (lambda: block_statistics(key, value, BLOCK), 2 * key.nbytes),
        },
        device,
    )


def _search(tokens: int, heads: int, size: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    query, key, value = waves(tokens, heads, size, dtype, device)
    _, lse = dense_attention(query, key, value, block_size=BLOCK)
    mean_key = block_means(key, BLOCK)
    mass, _ = block_mass(query, key, lse, BLOCK)
    keep = kept_number(0.125, mass.shape[-1])
    budget = torch.full((heads,), keep, device=device)
    products = 2 * heads * tokens**2 * size
    found = _rows(
        {
            "dense_attention": (lambda: dense_attention(query, key, value, block_size=BLOCK), 3 * key.nbytes),
            "block_mass": (lambda: block_mass(query, key, lse, BLOCK), 2 * key.nbytes),
            "block_mass, tail": (lambda: block_mass(query, key, lse, BLOCK, mean_key=mean_key), 2 * key.nbytes),
            "torch: topk": (lambda: mass.topk(keep), mass.nbytes),
            "top_blocks": (lambda: top_blocks(mass, keep), mass.nbytes),
            "top_blocks, by head": (lambda: top_blocks(mass, budget, width=keep), mass.nbytes),
        },
        device,
    )
    for name, row in found["rows"].items():
        if "attention" in name or "mass" in name:
            row["tflops"] = round((2 if name == "dense_attention" else 1) * products / row["ms"] / 1e9, 1)
    return found


def _arrangement(grid: tuple[int, int, int], heads: int, size: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    tokens = grid[0] * grid[1] * grid[2]
    arranged = arrange(grid, text="none", text_length=0, block_size=BLOCK, device=torch.device(device))
    sequence = torch.randn(1, tokens, heads, size, device=device).to(dtype)
    ordered = arranged.apply(sequence)
    return _rows(
        {
            "apply": (lambda: arranged.apply(sequence), 2 * sequence.nbytes),
            "restore": (lambda: arranged.restore(ordered), 2 * sequence.nbytes),
        },
        device,
    )
