"""What each method did with each block at each step, as a grid of cells for a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accel.methods.base import registered


@dataclass(frozen=True)
class Heat:
    """One method, denoiser and guidance branch: `cells[block][step]` says what was done, "" where nothing was.

    `levers` says for each of those words which settings, with their values, would change it.
    """

    method: str
    denoiser: str
    branch: str
    cells: list[list[str]]
    levers: dict[str, str]
    # Whether the rows are the linear layers of the denoiser instead of its blocks.
    of_layers: bool = False

    @property
    def words(self) -> list[str]:
        """What was done anywhere, in order of appearance."""
        return list(dict.fromkeys(word for row in self.cells for word in row if word))


def heats(summary: Mapping[str, Any]) -> list[Heat]:
    """The grids of the last run of a session's summary (`Summary.to_dict`)."""
    if not summary["runs"]:
        return []
    found = []
    for method, denoisers in summary["runs"][-1]["blocks"].items():
        levers = _levers(method, summary["settings"].get(method, {}))
        for denoiser, branches in denoisers.items():
            for branch, said in branches.items():
                found.append(Heat(method, denoiser, branch, _cells(said), levers, _of_layers(method)))
    return found


@dataclass(frozen=True)
class Density:
    """The share of key blocks that a method's attention attended exactly, `values[block][step]`.

    1 where it was dense, None where it was not called because the block was not computed. Of a block with several
    attentions it is the mean of those that were sparse.
    """

    method: str
    denoiser: str
    branch: str
    values: list[list[float | None]]


def densities(run: Mapping[str, Any]) -> list[Density]:
    """Those of one run of a summary; none where no attention was sparse."""
    found = []
    for method, measured in run.get("density", {}).items():
        for denoiser, branches in run["blocks"][method].items():
            for branch, said in branches.items():
                table: list[list[float | None]] = [[1.0 if word else None for word in row] for row in _cells(said)]
                for block, line in enumerate(measured.get(denoiser, {}).get(branch, ())):
                    for step, number in enumerate(line.split()):
                        if number != "-":
                            table[block][step] = float(number)
                found.append(Density(method, denoiser, branch, table))
    return found


def _cells(said: Mapping[str, list[str]]) -> list[list[str]]:
    marks = [
        (block, step, word)
        for word, steps in said.items()
        for step, blocks in enumerate(steps)
        for block in _places(blocks)
    ]
    steps = max((len(row) for row in said.values()), default=0)
    rows = [[""] * steps for _ in range(max((block for block, _, _ in marks), default=-1) + 1)]
    for block, step, word in marks:
        # A block with several attentions may have had one of each.
        rows[block][step] = f"{rows[block][step]} and {word}" if rows[block][step] else word
    return rows


def _places(text: str) -> list[int]:
    """The numbers of a text such as "0, 2-5"."""
    found: list[int] = []
    for part in filter(None, text.split(", ")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _of_layers(method: str) -> bool:
    known = registered().get(method)
    return known is not None and known.config.keyword == "quantize"


def _levers(method: str, settings: Mapping[str, Any]) -> dict[str, str]:
    known = registered().get(method)
    if known is None:  # Of results that another Accel has measured.
        return {}
    config = known.config
    # Beside a sparse attention the settings for the method alone are None and move nothing.
    off = {name for name in config.alone if settings.get(name) is None}
    return {
        word: ", ".join(f"{config.keyword}.{name}={settings[name]}" for name in names if name in settings.keys() - off)
        for word, names in config.levers.items()
    }
