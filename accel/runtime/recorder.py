"""The record of what really ran.

Decisions are known on the host and are counted there. Figures that live on the device are kept as tensors and read
once, when the record is asked for, so that recording never makes a run wait for the device.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from accel.runtime.clock import Moment


@dataclass
class RunRecord:
    """One run: its size, its seconds, and per method what was done with each block call."""

    index: int
    num_steps: int
    grid: tuple[int, int, int] | None = None
    branches: list[str] = field(default_factory=list)
    steps_seen: int = 0
    seconds: float = 0.0
    # (method, what, denoiser, branch, step, block) -> calls
    events: Counter = field(default_factory=Counter)
    fallbacks: Counter = field(default_factory=Counter)
    held_bytes: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    finished: bool = False
    _calls: list[tuple[Any, Any]] = field(default_factory=list)
    _figures: dict[tuple[str, str], list[torch.Tensor]] = field(default_factory=dict)

    def count(self, method: str, what: str | None = None) -> int:
        """Block calls of which the method said `what` (any, when None)."""
        return sum(n for key, n in self.events.items() if key[0] == method and what in (None, key[1]))

    def figures(self, method: str, name: str) -> torch.Tensor | None:
        """All values of a figure as one float32 tensor on the CPU, (observations, size of one)."""
        kept = self._figures.get((method, name))
        return torch.stack([tensor.float() for tensor in kept]).cpu() if kept else None

    @property
    def denoiser_seconds(self) -> float:
        """Seconds inside the denoiser's calls, measured on the device where it is a GPU."""
        return sum(_elapsed(start, end) for start, end in self._calls)


class Recorder:
    """Collects the records of all runs of a session."""

    def __init__(self) -> None:
        self.runs: list[RunRecord] = []
        self.outside_calls = 0
        self._began = 0.0

    @property
    def current(self) -> RunRecord | None:
        """The record of the run that is on."""
        return self.runs[-1] if self.runs and not self.runs[-1].finished else None

    def start_run(self, num_steps: int) -> None:
        """Opens a record."""
        self.runs.append(RunRecord(len(self.runs), num_steps))
        self._began = time.perf_counter()

    def end_run(self) -> None:
        """Closes the open record."""
        record = self.current
        if record is not None:
            record.seconds = time.perf_counter() - self._began
            record.finished = True

    def event(self, method: str, what: str, moment: Moment, block: int) -> None:
        """Counts one block call."""
        record = self.current
        if record is not None:
            record.events[method, what, moment.denoiser, moment.branch, moment.step, block] += 1

    def figure(self, method: str, name: str, value: torch.Tensor) -> None:
        """Keeps a small tensor of the device to be read at the end."""
        record = self.current
        if record is not None:
            record._figures.setdefault((method, name), []).append(value)

    def fallback(self, method: str, reason: str) -> None:
        """Counts one time that a method did not do what its rule asked for, and why."""
        record = self.current
        if record is not None:
            record.fallbacks[method, reason] += 1

    def held(self, method: str, nbytes: int) -> None:
        """Tells the memory that a method holds now; the record keeps the most."""
        record = self.current
        if record is not None:
            record.held_bytes[method] = max(record.held_bytes[method], nbytes)

    def note(self, text: str) -> None:
        """Adds a remark to the record, once."""
        record = self.current
        if record is not None and text not in record.notes:
            record.notes.append(text)

    def call_started(self, moment: Moment, device: torch.device) -> Any:
        """Begins the timing of one denoiser call; the result goes to `call_ended`."""
        record = self.current
        if record is not None:
            record.steps_seen = max(record.steps_seen, moment.step + 1)
            if moment.branch not in record.branches:
                record.branches.append(moment.branch)
        return _now(device)

    def call_ended(self, started: Any, device: torch.device) -> None:
        """Ends the timing of one denoiser call."""
        record = self.current
        if record is not None:
            record._calls.append((started, _now(device)))


def _now(device: torch.device) -> Any:
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event
    return time.perf_counter()


def _elapsed(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000
