"""What a timing and a speed-up are in a result file, and which rivals answer at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from accel.measure.timing import Case, Timing
from accel.measure.verdict import speed_up


def figures(timing: Timing) -> dict[str, Any]:
    """A timing for a result file, in milliseconds."""
    shown = {"ms": timing.median, "ms_p20": timing.p20, "ms_p80": timing.p80}
    return {**{name: round(1e3 * seconds, 4) for name, seconds in shown.items()}, "rounds": len(timing.seconds)}


def said(base: Timing, other: Timing) -> dict[str, Any]:
    """What may be said of how much faster than the base another case is, of the same rounds: the ratio, its spread and
    whether it is outside of that, with a text for people."""
    found = speed_up(base.seconds, other.seconds)
    return {**asdict(found), "measurable": found.measurable, "text": str(found)}


def require_within(errors: Mapping[str, float], bounds: Mapping[str, float]) -> None:
    """Raises `ValueError` that names the cases whose error is not finite, or above the bound where they have one."""
    wrong = []
    for name, error in errors.items():
        bound = bounds.get(name, math.inf)
        if not math.isfinite(error) or error > bound:
            wrong.append(f"{name} (error {error:.2e}{'' if math.isinf(bound) else f', bound {bound:.0e}'})")
    if wrong:
        raise ValueError(f"wrong results: {', '.join(wrong)}")


def answering(makers: Mapping[str, Callable[[], Case]]) -> tuple[dict[str, Case], dict[str, str]]:
    """The rivals that answer here, and what the others said."""
    cases, refused = {}, {}
    for name, make in makers.items():
        try:
            case = make()
            case()
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        else:
            cases[name] = case
    return cases, refused
