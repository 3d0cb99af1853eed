"""Times of cases that take turns, by the device's own clock where it has one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from accel.measure.timing import Timing

Case = Callable[[], object]

# Bytes that are written before each case: far more than a GPU's cache holds, and enough work that the case's launches
# are queued before the device comes to them. What a case takes on the host is then in no figure.
_LEAD = 1 << 30


def take_turns(cases: Mapping[str, Case], device: str, *, seconds: float = 4.0, most: int = 30) -> dict[str, Timing]:
    """Durations of each case on the device, in rounds; as many rounds as the seconds allow, 3 at least.

    The first calls of a case are warm-up: compilation, and clocks that rise. A case that raises is for the caller.
    """
    cuda = torch.device(device).type == "cuda"
    lead = torch.empty(_LEAD, dtype=torch.uint8, device=device) if cuda else None
    once = {}
    for name, case in cases.items():
        case()
        once[name] = min(_one(case, lead) for _ in range(2))
    rounds = max(3, min(most, int(seconds / max(sum(once.values()), 1e-6))))
    found: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(_one(cases[name], lead))
    return {name: Timing(tuple(times)) for name, times in found.items()}


def _one(case: Case, lead: Tensor | None) -> float:
    if lead is None:
        began = time.perf_counter()
        case()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    lead.zero_()
    start.record()
    case()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


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
