"""What a timing is in a result file, and which rivals answer at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from accel.measure.timing import Case, Timing


def figures(timing: Timing) -> dict[str, float]:
    """A timing for a result file, in milliseconds."""
    shown = {"ms": timing.median, "ms_p20": timing.p20, "ms_p80": timing.p80}
    return {**{name: round(1e3 * seconds, 4) for name, seconds in shown.items()}, "rounds": len(timing.seconds)}


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
