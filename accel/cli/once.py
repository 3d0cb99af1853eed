"""One run of a pipeline, plain or accelerated, with failures told apart."""

from __future__ import annotations

import math
import traceback
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

import accel
from accel.cli.call import call_arguments, frames_of, parameters_of, sound_of
from accel.cli.exits import RunFailed, one_line
from accel.cli.request import Request
from accel.config import AccelConfig
from accel.errors import AccelError, AccelWarning
from accel.measure.one_run import TimedRun, timed_run
from accel.reporting.run_report import Summary
from accel.reporting.sound import Sound


@dataclass(frozen=True)
class Done:
    """A finished run; `summary` is None for a plain one, which Accel did not touch, and `sound` for one without."""

    frames: np.ndarray
    sound: Sound | None
    seconds: float
    loop_seconds: float | None
    summary: Summary | None


def run_once(pipe: Any, request: Request, config: AccelConfig) -> Done:
    """Runs the request with the methods of `config`; without methods nothing is enabled.

    Raises:
        AccelError: the pipeline refused its arguments before the first step.
        RunFailed: the run failed, with the exception as its cause.
    """
    arguments = call_arguments(pipe, request)
    if not config.methods:
        done = call_once(pipe, request, arguments)
        return _done(pipe, done, None)
    with accel.enable(pipe, config) as session:
        done = call_once(pipe, request, arguments)
    return _done(pipe, done, session.summary())


def _done(pipe: Any, run: TimedRun, summary: Summary | None) -> Done:
    return Done(frames_of(run.output), sound_of(pipe, run.output), run.seconds, run.loop_seconds, summary)


def steps_for(pipe: Any, request: Request, steps: int) -> int:
    """What to ask for, so that at least so many steps are taken: one that starts from an image may skip the first."""
    parameter = parameters_of(pipe).get("strength")
    share = request.call.get("strength", None if parameter is None else parameter.default)
    return math.ceil(steps / share) if isinstance(share, float) and 0 < share < 1 else steps


def warm_up(pipe: Any, request: Request, config: AccelConfig, steps: int) -> None:
    """A short run whose result and remarks are dropped; of at least so many steps."""
    arguments = call_arguments(pipe, request)
    arguments["num_inference_steps"] = steps_for(pipe, request, steps)
    with warnings.catch_warnings():
        # In so few steps a method may find nothing to do, and says so.
        warnings.simplefilter("ignore", AccelWarning)
        if not config.methods:
            call_once(pipe, request, arguments)
            return
        with accel.enable(pipe, config):
            call_once(pipe, request, arguments)


def call_once(pipe: Any, request: Request, arguments: dict[str, Any]) -> TimedRun:
    """Calls the pipeline; raises `AccelError` for what it refuses before the first step, else `RunFailed`."""
    began = False

    def on_loop() -> None:
        nonlocal began
        began = True

    try:
        return timed_run(pipe, arguments, on_loop)
    except (AccelError, MemoryError):
        raise
    except Exception as error:
        name = type(pipe).__name__
        if not began and any(f.name == "check_inputs" for f in traceback.extract_tb(error.__traceback__)):
            raise AccelError(f"{name} refuses its arguments: {one_line(str(error))}") from error
        if not began and "image" in parameters_of(pipe) and request.image is None:
            raise AccelError(f"{name} cannot begin without --image ({one_line(str(error))})") from error
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise RunFailed(f"{name} failed: {type(error).__name__}: {one_line(str(error))}") from error
