"""Heat maps as a page draws them: cells with colours and words, a legend, and which cells to look at first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from accel.reporting.heat import Heat
from accel.reporting.heat_values import Measure, Values

# Neighbouring words get colours that differ in light too, so that they are told apart without seeing colour.
_WORDS = ("#0b6e4f", "#e8b84b", "#7a9cc6", "#c8553d", "#5d4a66", "#b9c7b0")
# From little to much, darker all the way.
_SCALE = ((253, 240, 200), (233, 150, 60), (110, 15, 30))
_TITLES: dict[Measure, str] = {"density": "density", "error": "error", "seconds": "time"}
_UNITS: dict[Measure, str] = {
    "density": "share of key blocks that were attended exactly",
    "error": "relative error of what the block returns, given its input",
    "seconds": "milliseconds in the block",
}
_HOT = {"density": "The least dense", "error": "The largest errors", "seconds": "The longest"}
_MOST = 3


@dataclass(frozen=True)
class Cell:
    """One block at one step, both from 0."""

    block: int
    step: int
    fill: str
    said: str


@dataclass(frozen=True)
class Key:
    """A line of a legend; `fill` is a colour, or a gradient for a range of numbers."""

    fill: str
    text: str
    wide: bool = False


@dataclass(frozen=True)
class Grid:
    """One map. `view` is what it shows: maps of several denoisers and branches with the same view go together."""

    view: str
    title: str
    rows: int
    columns: int
    row_name: str
    cells: Sequence[Cell]
    legend: Sequence[Key]
    hot_title: str = ""
    hot: Sequence[str] = ()


def of_words(heat: Heat) -> Grid:
    """What a method did where."""
    words = heat.words
    fills = {word: _WORDS[index % len(_WORDS)] for index, word in enumerate(words)}
    levers = {word: _lever(heat, word) for word in words}
    name = "layer" if heat.of_layers else "block"
    cells = [
        Cell(block, step, fills[word], f"{name} {block}, step {step + 1}: {word}. {levers[word]}")
        for block, row in enumerate(heat.cells)
        for step, word in enumerate(row)
        if word
    ]
    shares = {word: sum(row.count(word) for row in heat.cells) / len(cells) for word in words}
    legend = [Key(fills[word], f"{word}, {shares[word]:.0%}. {levers[word]}") for word in words]
    return Grid(heat.method, f"{heat.denoiser}, {heat.branch}", *_size(heat.cells), name, cells, legend)


def of_values(values: Values) -> Grid:
    """A measure; darker is more, and a cell of another colour than the scale's has none."""
    known = [value for row in values.values for value in row if value is not None]
    place, ends = _scale(values.measure, known)

    def said(blocks: Sequence[int], step: int) -> str:
        value, advice = values.values[blocks[0]][step], values.advice[blocks[0]][step]
        assert value is not None
        return f"{_these(blocks)}, step {step + 1}: {_shown(values.measure, value)}{advice and f'. {advice}'}"

    cells = [
        Cell(block, step, _colour(place(value)), said([block], step))
        for block, row in enumerate(values.values)
        for step, value in enumerate(row)
        if value is not None
    ]
    stops = ", ".join(_colour(index / 4) for index in range(5))
    return Grid(
        _TITLES[values.measure],
        f"{values.denoiser}, {values.branch}",
        *_size(values.values),
        "block",
        cells,
        [Key(f"linear-gradient(to right, {stops})", f"{ends}: {_UNITS[values.measure]}", wide=True)],
        _HOT[values.measure],
        [said(*one) for one in values.hottest(_MOST)],
    )


def _scale(measure: Measure, known: Sequence[float]) -> tuple[Callable[[float], float], str]:
    """Where on the scale a value is, 0 to 1, and what its ends are in words."""
    most = max(known, default=0.0)
    if measure == "density":
        return lambda value: value, "0 to 1"
    if measure == "seconds":
        return lambda value: value / most if most else 0.0, f"0 to {_shown(measure, most)}"
    # Errors differ by orders of magnitude: the scale is that of their logarithm, over three at most, and 0 below it.
    if not most:
        return lambda value: 0.0, "0 everywhere"
    least = max(min(value for value in known if value), most / 1000)
    span = math.log(most / least) or 1.0

    def place(value: float) -> float:
        return 0.0 if value <= 0 else 0.2 + 0.8 * max(0.0, math.log(value / least) / span if least < most else 1.0)

    return place, f"0, then {least:.2g} to {most:.2g} by powers"


def _these(blocks: Sequence[int]) -> str:
    if len(blocks) == 1:
        return f"block {blocks[0]}"
    whole = len(blocks) == blocks[-1] - blocks[0] + 1
    return f"blocks {blocks[0]} to {blocks[-1]}" if whole else f"blocks {', '.join(map(str, blocks))}"


def _shown(measure: Measure, value: float) -> str:
    return f"{value * 1000:.3g} ms" if measure == "seconds" else f"{_TITLES[measure]} {value:.3g}"


def _colour(place: float) -> str:
    place = min(max(place, 0.0), 1.0) * (len(_SCALE) - 1)
    index = min(int(place), len(_SCALE) - 2)
    parts = (a + (b - a) * (place - index) for a, b in zip(_SCALE[index], _SCALE[index + 1], strict=True))
    return "#" + "".join(f"{round(part):02x}" for part in parts)


def _size(rows: Sequence[Sequence[object]]) -> tuple[int, int]:
    return len(rows), max((len(row) for row in rows), default=0)


def _lever(heat: Heat, word: str) -> str:
    found = [heat.levers[part] for part in word.split(" and ") if heat.levers.get(part)]
    return f"What changes it: {'; '.join(dict.fromkeys(found))}" if found else "No setting changes it."
