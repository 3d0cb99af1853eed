"""One operation at one size: is it right, what does it take, and how does that stand beside what one would have."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from accel.measure.ceilings import Ceilings
from accel.measure.timing import take_turns
from bench.gpu_suite.figures import answering, figures, said
from bench.gpu_suite.problems import BOUNDS, differing, relative, results_of
from bench.kernels.cases import Place, Tensors, Trial, Variant, Work
from bench.kernels.sizes import SIZES
from bench.kernels.table import OPERATIONS

Row = dict[str, Any]

# Numbers of a result that are held against those of a rival.
_COMPARED = 1 << 22


@dataclass(frozen=True)
class Limits:
    """What a run may take: `call` seconds for the slowest single call of an operation or its rivals, at the device's
    ceilings; `free` bytes; `seconds` for all rounds of one row, or `rounds`."""

    ceilings: Ceilings
    call: float
    free: float
    seconds: float
    rounds: int | None

    def refusal(self, variant: Variant) -> str | None:
        """Why a variant is not run here, with the number; None where it may be."""
        work = variant.work
        flops = max(work.flops, work.rival)
        least = self.ceilings.ideal_seconds(flops, work.moved)
        if least > self.call:
            rates = f"{self.ceilings.flops / 1e9:.0f} GFLOP/s and {self.ceilings.bandwidth / 1e9:.0f} GB/s"
            return f"a call takes about {least:.0f} s ({flops:.1e} operations at {rates}), the limit is {self.call:g} s"
        if work.needs > self.free:
            return f"it needs about {work.needs / 1e9:.1f} GB, {self.free / 1e9:.1f} GB are free"
        return None


def free_bytes(device: str) -> float:
    """Memory that a device has left."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def measure(operation: str, size: str, place: Place, limits: Limits) -> list[Row]:
    """A row for each way to call an operation at a size."""
    return [_row(operation, size, variant, place, limits) for variant in OPERATIONS[operation](SIZES[size], place)]


def _row(operation: str, size: str, variant: Variant, place: Place, limits: Limits) -> Row:
    row: Row = {"operation": operation, "size": size, "variant": variant.name, "shape": variant.shape}
    if why := limits.refusal(variant):
        return {**row, "skipped": f"{why}; {_nearest(operation, variant, place, limits)}"}
    try:
        with torch.inference_mode():
            trial = variant.make()
            return {**row, **measured(trial, variant.work, place.device, seconds=limits.seconds, rounds=limits.rounds)}
    except Exception as error:
        return {**row, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def measured(trial: Trial, work: Work, device: str, *, seconds: float, rounds: int | None = None) -> Row:
    """The figures of a trial: time, what it achieves, its error, and its rivals with the speed-up over each.

    Nothing is said of the speed-up of a wrong result.
    """
    result = trial.run()
    error = error_of(trial.found(result), trial.wanted(), exact=trial.bound == 0)
    correct = error <= trial.bound
    rivals, refused = answering({name: lambda call=call: call for name, call in trial.rivals.items()})
    apart = {name: _apart(result, call()) for name, call in rivals.items()}
    del result
    times = take_turns({"": trial.run, **rivals}, device, seconds=seconds, rounds=rounds)
    own = times.pop("")
    row: Row = {
        **figures(own),
        "flop_per_s": work.flops / own.median if work.flops else None,
        "bytes_per_s": work.moved / own.median,
        "error": error if math.isfinite(error) else None,
        "bound": trial.bound,
        "correct": correct,
        "rivals": {},
        "refused": refused,
    }
    for name, time in times.items():
        row["rivals"][name] = {
            **figures(time),
            "apart": apart[name],
            "speed_up": said(time, own) if correct else None,
        }
    return row


def error_of(found: Tensors, wanted: Tensors, *, exact: bool) -> float:
    """The largest relative error of any part, or the share that differs where bits or whole numbers are asked for.

    NaN where the parts are not as many, not of one shape, or hold a NaN that should not be there.
    """
    if len(found) != len(wanted) or any(a.shape != b.shape for a, b in zip(found, wanted, strict=True)):
        return math.nan
    errors = [
        differing(one, other.to(one.device)) if exact or not one.is_floating_point() else relative(one, other)
        for one, other in zip(found, wanted, strict=True)
    ]
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


def _apart(result: Any, other: Any) -> float | None:
    """How far the beginning of a result is from a rival's, relatively; None where they are not numbers of one kind, or
    hold a NaN."""
    one, two = results_of(result)[0], results_of(other)[0]
    if one.shape != two.shape or one.dtype not in BOUNDS or two.dtype not in BOUNDS:
        return None
    apart = relative(one.flatten()[:_COMPARED], two.flatten()[:_COMPARED])
    return apart if math.isfinite(apart) else None


def _nearest(operation: str, refused: Variant, place: Place, limits: Limits) -> str:
    """The largest size at which this variant runs here."""
    found = {
        name: variant.work.needs
        for name, size in SIZES.items()
        for variant in OPERATIONS[operation](size, place)
        if variant.name == refused.name and limits.refusal(variant) is None
    }
    return f"the nearest size that works is {max(found, key=lambda n: found[n])}" if found else "no size works here"
