"""A benchmark whose runs are made up: seconds by a formula with noise, frames by seed, no model is called."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from accel.measure.cells import Place
from accel.measure.matrix import Work
from accel.measure.one_run import TimedRun
from accel.runtime.runs import watcher_of

STEPS = 8


class MadeUp:
    """Gives `work` for `measure`; `calls` are the arguments of all calls.

    `speed` gives the seconds of a call from its steps and whether methods are on, `spoil` changes the frames of a call.
    """

    def __init__(
        self,
        pipe: Any,
        speed: Callable[[int, bool], float] = lambda steps, on: steps / STEPS,
        spoil: Callable[[np.ndarray, Mapping[str, Any], bool], np.ndarray] = lambda frames, given, on: frames,
        noise: float = 0.02,
    ) -> None:
        self.calls: list[Mapping[str, Any]] = []
        self._pipe, self._speed, self._spoil, self._noise = pipe, speed, spoil, noise
        self._random = random.Random(0)
        self.work = Work(pipe, STEPS, self._arguments, self._call, lambda output: output.frames[0], self._judge)

    def _arguments(self, place: Place, steps: int | None) -> dict[str, Any]:
        return {"prompt": place.prompt, "seed": place.seed, "num_inference_steps": steps or STEPS}

    def _call(self, given: Mapping[str, Any]) -> TimedRun:
        self.calls.append(given)
        on = watcher_of(self._pipe) is not None
        steps = given["num_inference_steps"]
        seconds = self._speed(steps, on) * (1 + self._noise * self._random.uniform(-1, 1))
        rng = np.random.default_rng([given["seed"], len(given["prompt"])])
        frames = rng.random((3, 12, 12, 3), dtype=np.float32) * 0.9 + (STEPS - steps) * 0.001
        return TimedRun(SimpleNamespace(frames=[self._spoil(frames, given, on)]), seconds, seconds * 0.9)

    @staticmethod
    def _judge(frames: np.ndarray, reference: np.ndarray | None, place: Place) -> dict[str, Any]:
        decibels = None
        if reference is not None and (error := float(np.square(frames - reference).mean())):
            decibels = float(-10 * np.log10(error))
        return {"psnr_db": decibels, "motion": float(np.abs(np.diff(frames, axis=0)).mean()), "flags": {}, "score": {}}
