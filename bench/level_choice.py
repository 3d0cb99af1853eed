"""Which setting of each method stands at a level of quality, and whether Accel's best is the front there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from accel.measure.lines import Line, mean_psnr
from accel.measure.verdict import SpeedUp
from accel.reporting.front import faster, front, kind_of, points

# Mean PSNR to the plain clips, in dB.
LEVELS = (35.0, 30.0, 25.0)

# How many times as fast the second setting is as the first, by their names.
Against = Callable[[str, str], SpeedUp]


def likeness(line: Line) -> float | None:
    """Mean PSNR in dB over the clips that differ from the plain ones; infinite where none does, None without clips."""
    found = mean_psnr(line)
    return math.inf if found is None and line["same_bits"] else found


def fastest(lines: Sequence[Line], level: float) -> Line | None:
    """The one that takes the least seconds of those whose mean PSNR is at least the level.

    A line of which no speed-up may be said (broken, frozen, no run) is none of them.
    """
    found = [
        line
        for line in lines
        if not line["baseline"] and line["speed_up"] is not None and (likeness(line) or 0.0) >= level
    ]
    return min(found, key=lambda line: line["seconds"]["total"]["median"], default=None)


def at_level(
    lines: Sequence[Line], families: Mapping[str, Sequence[str]], level: float
) -> dict[str, tuple[Line | None, str]]:
    """By method the fastest line of its settings' names at a level; where there is none, None and the reason."""
    by_name = {line["setting"]: line for line in lines}
    found = {}
    for family, names in families.items():
        own = [by_name[name] for name in names]
        found[family] = (fastest(own, level), _why_none(own))
    return found


def bests(lines: Sequence[Line], level: float) -> tuple[Line | None, Line | None]:
    """At a level the fastest of Accel, and the fastest of rivals and fewer steps; None where plain is as fast."""
    ours = [line for line in lines if kind_of(line) == "method"]
    others = [line for line in lines if kind_of(line) != "method"]
    mine, other = (fastest([line for line in some if faster(line)], level) for some in (ours, others))
    return mine, other


def closing(lines: Sequence[Line], against: Against, levels: Sequence[float] = LEVELS) -> list[str]:
    """Where Accel's best line is the front and where not, and by how much: at each level, and over the whole front."""
    text = [_at(level, *bests(lines, level), against) for level in levels]
    best = front(points(lines))
    foreign = [point for point in best if point.kind != "method"]
    own = len(best) - len(foreign)
    text.append(f"Accel has {own} of the {len(best)} settings that none other beats in both speed and mean PSNR.")
    by_name = {line["setting"]: line for line in lines}
    for point in foreign:
        other = by_name[point.name]
        mine, _ = bests(lines, point.psnr_db)
        why = "Accel has nothing faster than plain with as many dB"
        if mine is not None:
            times = against(mine["setting"], other["setting"])
            why = f"over Accel's fastest with as many dB, {_named(mine)}, its speed-up is {times}"
        text.append(f"{_named(other)} is on the front: {why}.")
    return text


def _at(level: float, mine: Line | None, other: Line | None, against: Against) -> str:
    start = f"At {level:g} dB"
    if mine is None:
        rest = "and no other has." if other is None else f"and {_named(other)} is the front."
        return f"{start} Accel has nothing faster than plain, {rest}"
    best = f"Accel's best, {_named(mine)},"
    if other is None:
        return f"{start} {best} is the front: no rival and no fewer steps are faster than plain there."
    times = against(other["setting"], mine["setting"])
    if times.measurable is False:
        return f"{start} {best} and the best other, {_named(other)}, are equally fast: {times}."
    if times.ratio >= 1:
        return f"{start} {best} is the front: its speed-up over the best other, {_named(other)}, is {times}."
    behind = against(mine["setting"], other["setting"])
    return f"{start} {best} is not the front: the speed-up of {_named(other)} over it is {behind}."


def _named(line: Line) -> str:
    decibels = likeness(line)
    quality = "the same bits" if decibels is None or math.isinf(decibels) else f"{decibels:.1f} dB"
    return f"{line['setting']} ({line['speed_up']['ratio']:.2f}×, {quality})"


def _why_none(lines: Sequence[Line]) -> str:
    errors = list(dict.fromkeys(error for line in lines for error in line["errors"]))
    if errors and not any(line["runs"] for line in lines):
        return f"failed: {'; '.join(errors)}"
    known = [decibels for line in lines if line["speed_up"] is not None and (decibels := likeness(line)) is not None]
    if known:
        return f"none of {len(lines)} settings: the best has {max(known):.1f} dB"
    reasons = list(dict.fromkeys(reason for line in lines for reason in line["unsaid"]))
    return f"no speed-up is said: {'; '.join(reasons)}"
