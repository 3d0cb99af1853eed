"""One call of a pipeline, timed: the whole, and the denoising loop in it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from accel.runtime.runs import watch_runs


@dataclass(frozen=True)
class TimedRun:
    """What a call returned, and its seconds; what is known of its loop, None where the pipeline has no progress bar.

    `steps` are those that were taken, as the scheduler counts them; `evaluations` how often the model was asked for in
    them, of each guidance branch: a second-order scheduler does so twice in all its steps but the last.
    """

    output: Any
    seconds: float
    loop_seconds: float | None
    steps: int | None = None
    evaluations: int | None = None


def timed_run(pipe: Any, arguments: Mapping[str, Any], on_loop: Callable[[], None] | None = None) -> TimedRun:
    """Calls `pipe(**arguments)` once; the device is waited for at both ends of the call and of the loop.

    `on_loop` is called when the denoising loop begins: until then the pipeline has looked at its arguments and
    encoded the prompt. Of several loops in one call the seconds, steps and evaluations are added.
    """
    device = torch.device(getattr(pipe, "_execution_device", None) or "cpu")
    began: list[float] = []
    loops: list[float] = []
    evaluations: list[int] = []

    def start(count: int) -> None:
        if on_loop is not None:
            on_loop()
        evaluations.append(count)
        began.append(_now(device))

    def end(_broken: bool) -> None:
        loops.append(_now(device) - began[-1])

    stop = watch_runs(pipe, start, end) if hasattr(pipe, "progress_bar") else lambda: None
    try:
        whole = _now(device)
        output = pipe(**arguments)
        seconds = _now(device) - whole
        if not loops:
            return TimedRun(output, seconds, None)
        order = getattr(getattr(pipe, "scheduler", None), "order", 1)
        steps = sum(math.ceil(count / order) for count in evaluations)
        return TimedRun(output, seconds, sum(loops), steps, sum(evaluations))
    finally:
        stop()


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
