"""Which tile block attention should take on this device: each candidate timed, with what the compiler reports."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any
from unittest import mock

import torch

from accel.kernels.block_attention import block_attention, triton
from accel.kernels.block_attention.tiles import HEADS, Tile
from accel.kernels.block_attention.triton_kernels import attend
from bench.gpu_suite.attention import _beside
from bench.gpu_suite.cells import Cells
from bench.gpu_suite.clock import figures, take_turns
from bench.gpu_suite.problems import choice, relative, waves

TOKENS, HEADS_OF_THEM, DENSITY = 16_384, 16, 0.125


def run(cells: Cells, device: str, tiny: bool) -> None:
    """A cell for each candidate, head size, block size and tail; nothing where no tile is compiled."""
    if torch.device(device).type != "cuda" or tiny:
        return
    for size, block, tail in itertools.product(HEADS, (64, 128), ("none", "hybrid")):
        for columns, warps, stages, tokens in itertools.product((32, 64, 128), (4, 8), (2, 3, 4), (32, 64)):
            if columns > block or (tail == "none" and tokens != 64):
                continue
            tile = Tile(columns, warps, stages, tokens)
            name = f"head{size}/block{block}/{tail}/columns{columns}-warps{warps}-stages{stages}-tokens{tokens}"
            cells.run(name, partial(_one, size, block, tail, tile, device), tile=vars(tile))


def _one(size: int, block: int, tail: str, tile: Tile, device: str) -> dict[str, Any]:
    query, key, value = waves(TOKENS, HEADS_OF_THEM, size, torch.bfloat16, device)
    blocks, counts = choice(query, key, block, DENSITY)
    beside = _beside(key, value, tail) if block == 64 else {}
    wanted = block_attention(query, key, value, blocks, counts, block_size=block, **beside)[0]
    # The one place where the table is overruled; the patch ends with the cell.
    with mock.patch.object(triton, "tile_for", lambda *_: (size, tile)):
        attend.device_caches.clear()

        def call() -> torch.Tensor:
            return block_attention(query, key, value, blocks, counts, block_size=block, **beside)[0]

        error = relative(call(), wanted)
        time = take_turns({"tile": call}, device, seconds=0.5)["tile"]
        compiled = [kernel for cache in attend.device_caches.values() for kernel in cache[0].values()]
    spills = (
        {"registers": max(k.n_regs for k in compiled), "spills": max(k.n_spills for k in compiled)} if compiled else {}
    )
    rate = 4 * HEADS_OF_THEM * TOKENS**2 * size * DENSITY / time.median / 1e12
    return {**figures(time), "tflops": round(rate, 1), "error": error, **spills}
