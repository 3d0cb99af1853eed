"""How the Triton form cuts its work on each architecture: a table, so that no run depends on what a tuner measured.

A row of work is one query block, so the height of a tile is the block size. The table holds the rest for blocks of 64
tokens and more; smaller blocks take the same warps with tiles as wide as their blocks.
"""

from dataclasses import dataclass, replace

import torch

from accel.kernels.forms import by_architecture

# The head sizes that a kernel computes with; a head is padded to the next one.
HEADS = (64, 128)


@dataclass(frozen=True)
class Tile:
    """The cut of one kernel.

    Attributes:
        columns: keys that one iteration takes; a block of more is taken in several.
        warps: warps of one program.
        stages: iterations that are in flight.
        tokens: virtual tokens of the tail that one iteration takes.
        registers: how many a thread may have; the assembler decides where it is None.
    """

    columns: int
    warps: int
    stages: int
    tokens: int
    registers: int | None = None


# Half types, by compute capability (the largest that is not above the device's) and head.
TILES: dict[int, dict[int, Tile]] = {
    80: {64: Tile(columns=64, warps=4, stages=3, tokens=64), 128: Tile(columns=64, warps=4, stages=3, tokens=64)},
    89: {64: Tile(columns=64, warps=4, stages=3, tokens=64), 128: Tile(columns=64, warps=4, stages=2, tokens=64)},
    90: {64: Tile(columns=64, warps=4, stages=3, tokens=64), 128: Tile(columns=64, warps=4, stages=3, tokens=64)},
    100: {64: Tile(columns=64, warps=4, stages=3, tokens=64), 128: Tile(columns=64, warps=4, stages=3, tokens=64)},
    120: {64: Tile(columns=64, warps=4, stages=3, tokens=64), 128: Tile(columns=64, warps=4, stages=2, tokens=64)},
}
# All that a thread can have. Left to itself, the assembler gives threads of the float32 kernels 128, and spills.
_ALL = 255
# float32, whose products no tensor core makes: nothing in flight, on every architecture. By head and rows of a block,
# since warps do not grow with the rows of the widest: sixteen would have 128 registers for each thread, and spill.
FLOAT32: dict[int, dict[int, Tile]] = {
    64: {
        64: Tile(columns=32, warps=4, stages=1, tokens=32, registers=_ALL),
        128: Tile(columns=32, warps=8, stages=1, tokens=32, registers=_ALL),
    },
    128: {
        64: Tile(columns=64, warps=8, stages=1, tokens=32, registers=_ALL),
        128: Tile(columns=32, warps=8, stages=1, tokens=32, registers=_ALL),
    },
}


def tile_for(dtype: torch.dtype, head_size: int, block_size: int) -> tuple[int, Tile]:
    """The head that a kernel computes with, and the tile for the current device."""
    head = next(head for head in HEADS if head >= head_size)
    if dtype == torch.float32:
        tile = FLOAT32[head][max(block_size, 64)]
    else:
        tile = by_architecture(TILES)[head]
        # A block of 128 rows holds twice the accumulators.
        tile = replace(tile, warps=tile.warps * 2) if block_size > 64 else tile
    return head, replace(tile, columns=min(tile.columns, block_size))
