"""The table in docs/together.md says of every two methods what the rules say."""

from __future__ import annotations

from pathlib import Path

from accel.methods.base import registered
from accel.methods.rules import pairs
from accel.pipelines.families import families

PAGE = Path(__file__).parents[1] / "docs" / "together.md"


def table() -> str:
    """One row for a method, one column for each other: "yes", or what to do instead on any family that refuses both."""
    names = sorted(registered())
    cells = {(name, name): "" for name in names}
    for family in families().values():
        for one, other, why in pairs(family):
            said = "yes" if why is None else why.rpartition(": ")[2]
            if cells.setdefault((one, other), said) != said:
                cells[one, other] = "not on every family"
            cells[other, one] = cells[one, other]
    rows = [["", *names], ["---"] * (len(names) + 1)]
    rows += [[f"**{one}**", *(cells[one, other] for other in names)] for one in names]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows)


def test_the_page_has_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), f"put this into docs/together.md:\n{table()}"
