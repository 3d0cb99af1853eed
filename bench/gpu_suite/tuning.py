"""Which tiles the kernels should take on this device: each candidate timed, with what the compiler reports."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from accel.kernels.block_attention import block_attention, dense_attention
from accel.kernels.block_attention.tiles import HEADS, Tile
from accel.kernels.block_mass import block_mass
from accel.kernels.block_statistics import block_statistics
from accel.kernels.blocks import resolved_scale
from accel.measure.timing import take_turns
from bench.gpu_suite.attention import tail_of
from bench.gpu_suite.cells import Cells
from bench.gpu_suite.figures import figures
from bench.gpu_suite.problems import choice, relative, waves

# No multiple of a block: the kernel that methods call is the one that may meet short blocks.
TOKENS, NUMBER_OF_HEADS, DENSITY = 16_400, 16, 0.125
_DTYPE = torch.bfloat16
_BESIDE = ("mean_key", "mean_value", "first_order")


def run(cells: Cells, device: str, tiny: bool) -> None:
    """A cell for each candidate; nothing where no tile is compiled."""
    if torch.device(device).type != "cuda" or tiny:
        return
    for size, block, tail in itertools.product(HEADS, (64, 128), ("none", "hybrid")):
        for tile in candidates(block, tail):
            name = f"block_attention/head{size}/block{block}/{tail}/" + "-".join(
                f"{k}{v}" for k, v in vars(tile).items()
            )
            measure = partial(_attention, size, block, tail, tile, device)
            cells.run(name, measure, head=size, block=block, tail=tail, tile=vars(tile))
    for size in HEADS:
        for rows, columns, warps, stages in itertools.product((64, 128), (64, 128), (4, 8), (2, 3, 4)):
            sizes = {"ROWS": {_DTYPE: rows}, "COLUMNS": columns, "WARPS": {_DTYPE: warps}, "STAGES": stages}
            name = f"block_mass/head{size}/rows{rows}-columns{columns}-warps{warps}-stages{stages}"
            cells.run(name, partial(_mass, size, sizes, device))
        for tokens, columns, stages, splits in itertools.product((32, 64), (64, 128), (1, 2, 3), (32, 64)):
            if columns <= size:
                sizes = {
                    "TOKENS": {_DTYPE: tokens},
                    "COLUMNS": {_DTYPE: columns},
                    "STAGES": stages,
                    "MAX_SPLITS": splits,
                }
                name = f"block_statistics/head{size}/tokens{tokens}-columns{columns}-stages{stages}-splits{splits}"
                cells.run(name, partial(_statistics, size, sizes, device))


def candidates(block: int, tail: str) -> list[Tile]:
    """The tiles to try. `tokens` is for the tail alone, and blocks of 128 take those of 64."""
    tokens = (32, 64) if tail != "none" and block == 64 else (64,)
    widths = [columns for columns in (32, 64, 128) if columns <= block and 2 * columns >= block]
    return [Tile(*cut) for cut in itertools.product(widths, (4, 8), (2, 3, 4), tokens)]


def _attention(size: int, block: int, tail: str, tile: Tile, device: str) -> dict[str, Any]:
    from accel.kernels.block_attention import triton  # Only where there is a GPU must Triton be there.

    query, key, value = waves(TOKENS, NUMBER_OF_HEADS, size, _DTYPE, device)
    blocks, counts = choice(query, key, block, DENSITY)
    beside = tail_of(key, value, block, tail)
    scale, given = resolved_scale(None, size), [beside.get(name) for name in _BESIDE]

    def call() -> Tensor:
        lists = (blocks, counts, block, None)
        return triton.block_attention(query, key, value, *lists, *given, None, None, scale, tile=tile)[0]

    wanted = block_attention(query, key, value, blocks, counts, block_size=block, **beside)[0]
    found = _measured(call, wanted, device, "accel.kernels.block_attention.triton_kernels", "attend")
    rate = 4 * NUMBER_OF_HEADS * TOKENS**2 * size * DENSITY / found["ms"] / 1e9
    return {**found, "tflops": round(rate, 1)}


def _mass(size: int, sizes: dict[str, Any], device: str) -> dict[str, Any]:
    query, key, value = waves(TOKENS, NUMBER_OF_HEADS, size, _DTYPE, device)
    lse = dense_attention(query, key, value)[1]
    return _with_sizes("block_mass", sizes, lambda: block_mass(query, key, lse)[0], device)


def _statistics(size: int, sizes: dict[str, Any], device: str) -> dict[str, Any]:
    _, key, value = waves(TOKENS, NUMBER_OF_HEADS, size, _DTYPE, device)
    return _with_sizes("block_statistics", sizes, lambda: block_statistics(key, value).mean_value, device)


def _with_sizes(operation: str, sizes: dict[str, Any], call: Callable[[], Tensor], device: str) -> dict[str, Any]:
    """An operation whose tile is in its module's constants, with others for as long as it is measured."""
    wanted, module = call(), f"accel.kernels.{operation}.triton"
    with mock.patch.multiple(module, **sizes):
        return _measured(call, wanted, device, module, f"_{operation}")


def _measured(call: Callable[[], Tensor], wanted: Tensor, device: str, module: str, kernel: str) -> dict[str, Any]:
    """Time, distance from what the table's own tile gives, and the registers and spills of the kernel."""
    function = getattr(importlib.import_module(module), kernel)
    function.device_caches.clear()
    error = relative(call(), wanted)
    time = take_turns({"tile": call}, device, seconds=0.3)["tile"]
    # Triton keeps what it compiled by device; the first entry of each holds the kernels.
    compiled = [one for cache in function.device_caches.values() for one in cache[0].values()]
    report = {"registers": max(one.n_regs for one in compiled), "spills": max(one.n_spills for one in compiled)}
    return {**figures(time), "error": error, **report}
