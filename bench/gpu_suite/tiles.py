"""Which of the measured tiles the table of block attention should have, in the form that the table takes."""

from __future__ import annotations

import math
from typing import Any

from bench.gpu_suite.cells import Results

# A tile whose result is further from that of the table's own is wrong, not fast.
_NEAR = 1e-2


def proposal(done: Results) -> list[str]:
    """For each head size the tile that is fastest over both tails at blocks of 64, as lines of `tiles.TILES`.

    Blocks of 128 take the same tile with twice the warps: where another is faster there, the table cannot say so yet,
    and the line behind does.
    """
    lines = []
    for head in sorted({cell["head"] for cell in done.values() if "head" in cell}):
        usual, large = (_best(done, head, block) for block in (64, 128))
        if usual:
            lines.append(f"{head}: {_written(usual[0])},  # {usual[1]:.4f} ms, geometric mean of the tails")
        if large:
            lines.append(f"# Head {head}, blocks of 128: {_written(large[0])}, {large[1]:.4f} ms")
    return ["```python", *lines, "```"] if lines else ["No tile of block attention was measured."]


def _best(done: Results, head: int, block: int) -> tuple[dict[str, int], float] | None:
    cells = [cell for cell in done.values() if (cell.get("head"), cell.get("block")) == (head, block)]
    sound = [cell for cell in cells if cell["error"] < _NEAR]
    # Without a tail, `tokens` plays no part.
    plain = {_listed(cell["tile"]): cell["ms"] for cell in sound if cell["tail"] == "none"}
    both = [
        (cell["tile"], math.sqrt(cell["ms"] * plain[_listed(cell["tile"])]))
        for cell in sound
        if cell["tail"] != "none" and _listed(cell["tile"]) in plain
    ]
    return min(both, key=lambda pair: pair[1], default=None)


def _listed(tile: dict[str, int]) -> tuple[int, int, int]:
    return tile["columns"], tile["warps"], tile["stages"]


def _written(tile: dict[str, Any]) -> str:
    return f"Tile({', '.join(f'{name}={value}' for name, value in tile.items())})"
