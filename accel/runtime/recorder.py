"""The record of what really ran.

Decisions are known on the host and are counted there. Figures that live on the device are kept as tensors and read
once, when the record is asked for, so that recording never makes a run wait for the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from accel.runtime.clock import Moment
from accel.runtime.device_clock import mark, seconds_between

# Denoiser, branch, and (chunk, step): the call of a denoiser within its run.
When = tuple[str, str, tuple[int, int]]
# By denoiser and branch, [block][step]: a number, None where there is none.
ByBlock = dict[str, dict[str, list[list[float | None]]]]


@dataclass
class RunRecord:
    """One run: its size, its seconds, and per method what was done with each block call.

    `num_steps` are those of one chunk. With `by_calls` the loop is what lies between the first and the last call of the
    denoiser, because its own ends are not known.
    """

    index: int
    num_steps: int
    by_calls: bool = False
    # Steps over all chunks; None where it is not told, and there is one chunk then.
    planned: int | None = None
    # Calls of the denoiser that are no step: they keep keys and values of chunks that are done.
    filling_calls: int = 0
    grid: tuple[int, int, int] | None = None
    branches: list[str] = field(default_factory=list)
    # (method, what, denoiser, branch, (chunk, step)) -> the blocks, as bits: a run may have thousands of block calls.
    events: dict[tuple[str, str, str, str, tuple[int, int]], int] = field(default_factory=dict)
    # (method, name) -> what was so in this run and may be otherwise in the next.
    facts: dict[tuple[str, str], Any] = field(default_factory=dict)
    fallbacks: Counter[tuple[str, str]] = field(default_factory=Counter)
    held_bytes: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    state: Literal["running", "finished", "broken off", "unseen"] = "running"
    _steps: dict[tuple[int, int], None] = field(default_factory=dict)
    _calls: list[tuple[Any, Any]] = field(default_factory=list)
    _settled_seconds: float = 0.0
    _device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _began: Any = None
    _ended: Any = None
    _call_began: Any = None
    _call_over: Any = None
    _figures: dict[tuple[str, str], list[torch.Tensor]] = field(default_factory=dict)
    # Of figures that are of a block, in their order: the blocks, call by call.
    _blocks: dict[tuple[str, str], dict[When, list[int]]] = field(default_factory=dict)

    @property
    def planned_steps(self) -> int:
        """Steps over all chunks that the pipeline was to take."""
        return self.num_steps if self.planned is None else self.planned

    @property
    def chunks_seen(self) -> int:
        """Chunks in which a denoiser was called."""
        return len({chunk for chunk, _ in self._steps})

    @property
    def steps_seen(self) -> int:
        """Steps in which a denoiser was called, over all chunks."""
        return len(self._steps)

    def count(self, method: str, what: str | None = None) -> int:
        """Block calls of which the method said `what` (any, when None)."""
        return sum(
            blocks.bit_count()
            for (by, said, *_), blocks in self.events.items()
            if by == method and what in (None, said)
        )

    def counts(self, method: str) -> dict[str, int]:
        """Block calls by what the method said."""
        found: Counter[str] = Counter()
        for (by, said, *_), blocks in self.events.items():
            if by == method:
                found[said] += blocks.bit_count()
        return dict(sorted(found.items()))

    def count_by_step(self, method: str, what: str) -> list[int]:
        """The same for each step."""
        counts = dict.fromkeys(self._steps, 0)
        for (by, said, _, _, step), blocks in self.events.items():
            if by == method and said == what:
                counts[step] += blocks.bit_count()
        return list(counts.values())

    def what_ran(self, method: str) -> dict[str, dict[str, dict[str, list[str]]]]:
        """By denoiser, guidance branch and what the method said: of which blocks in each step, as in "0, 2-5"."""
        ran: dict[str, dict[str, dict[str, list[str]]]] = {}
        for place, step in enumerate(self._steps):
            for (by, said, denoiser, branch, its_step), blocks in self.events.items():
                if by == method and its_step == step:
                    branches = ran.setdefault(denoiser, {}).setdefault(branch, {})
                    branches.setdefault(said, [""] * len(self._steps))[place] = _in_words(blocks)
        return ran

    def figures(self, method: str, name: str) -> torch.Tensor | None:
        """All values of a figure as one float32 tensor on the CPU, (observations, size of one)."""
        kept = self._figures.get((method, name))
        return torch.cat([values.float().cpu() for values in kept]) if kept else None

    def figure_by_block(self, method: str, name: str) -> ByBlock:
        """A figure of one value that was kept with its block; the mean where a block had several in a call."""
        values, blocks = self.figures(method, name), self._blocks.get((method, name))
        if values is None or blocks is None:
            return {}
        numbers = iter(values[:, 0].tolist())
        return self.by_block((call, block, next(numbers)) for call, those in blocks.items() for block in those)

    def by_block(self, values: Iterable[tuple[When, int, float]]) -> ByBlock:
        """Numbers, each with its call and block, as tables over all steps of the run; several of one place as mean."""
        columns = {step: place for place, step in enumerate(self._steps)}
        cells: dict[tuple[str, str], dict[tuple[int, int], list[float]]] = {}
        for (denoiser, branch, step), block, value in values:
            cells.setdefault((denoiser, branch), {}).setdefault((block, columns[step]), []).append(value)
        tables: ByBlock = {}
        for (denoiser, branch), found in cells.items():
            rows = range(1 + max(block for block, _ in found))
            means = {place: sum(those) / len(those) for place, those in found.items()}
            tables.setdefault(denoiser, {})[branch] = [
                [means.get((block, column)) for column in range(len(columns))] for block in rows
            ]
        return tables

    @property
    def seconds(self) -> float:
        """Seconds of the denoising loop, so far or in all, measured on the device where it is a GPU."""
        return seconds_between(self._began, self._ended or mark(self._device))

    @property
    def denoiser_seconds(self) -> float:
        """Seconds inside the denoiser's calls, measured on the device where it is a GPU."""
        self.settle()
        return self._settled_seconds

    @property
    def call_seconds(self) -> float | None:
        """Seconds of the pipeline's whole call, with text encoders and autoencoder; None where it does not tell both
        ends, has several loops, is not over, or was broken off. One that fails behind its loop is over for the record
        where its user next has the pipeline let go of its models."""
        if self._call_began is None or self._call_over is None or self.state != "finished":
            return None
        return seconds_between(self._call_began, self._call_over)

    def settle(self) -> None:
        """Reads the clocks of the calls so far and lets go of them."""
        self._settled_seconds += sum(seconds_between(start, end) for start, end in self._calls)
        self._calls.clear()


class Recorder:
    """Collects the records of all runs of a session."""

    def __init__(self) -> None:
        self.runs: list[RunRecord] = []
        self.outside_calls = 0
        self._call_began: Any = None

    @property
    def current(self) -> RunRecord | None:
        """The record of the run that is on."""
        return self.runs[-1] if self.runs and self.runs[-1].state == "running" else None

    def call_began(self, device: torch.device) -> None:
        """Notes where a call of the pipeline begins, on `device`, in which a run may follow."""
        self._call_began = mark(device)

    def call_over(self) -> None:
        """Notes where the call of the last run is over; of a run that is still on, where it ends with the call."""
        record = self.runs[-1] if self.runs else None
        if record is not None and record._call_over is None and (record.by_calls or record.state == "finished"):
            record._call_over = mark(record._device)

    def start_run(self, num_steps: int, device: torch.device, *, by_calls: bool = False) -> None:
        """Opens a record of a run on `device`."""
        if self.runs:
            # By now the device is done with it, so that reading its clocks waits for nothing.
            self.runs[-1].settle()
        began, self._call_began = self._call_began, None
        self.runs.append(
            RunRecord(len(self.runs), num_steps, by_calls, _device=device, _began=mark(device), _call_began=began)
        )

    def end_run(self, *, broken: bool) -> None:
        """Closes the open record; one in which nothing happened is dropped."""
        record = self.current
        if record is None:
            return
        if record._ended is None or not record.by_calls:
            record._ended = mark(record._device)
        whole = not broken and record.steps_seen >= record.planned_steps
        record.state = "unseen" if not record.steps_seen else "finished" if whole else "broken off"
        record._figures = {key: _joined(values) for key, values in record._figures.items()}
        if not record.steps_seen and not record.notes:
            self.runs.pop()

    def forget(self) -> None:
        """Drops the records of the runs that are over."""
        self.runs = [record for record in self.runs if record.state == "running"]
        self.outside_calls = 0

    def event(self, method: str, what: str, moment: Moment, block: int) -> None:
        """Counts one block call."""
        record = self.current
        if record is not None:
            key = (method, what, moment.denoiser, moment.branch, (moment.chunk, moment.step))
            record.events[key] = record.events.get(key, 0) | 1 << block

    def figure(self, method: str, name: str, value: torch.Tensor, moment: Moment | None = None, block: int = 0) -> None:
        """Keeps a small vector of the device to be read at the end; with a moment, as that of a block then."""
        record = self.current
        if record is not None:
            record._figures.setdefault((method, name), []).append(value[None])
            if moment is not None:
                record._blocks.setdefault((method, name), {}).setdefault(when(moment), []).append(block)

    def fact(self, method: str, name: str, value: Any) -> None:
        """Keeps what is so in this run; the last value counts."""
        record = self.current
        if record is not None:
            record.facts[method, name] = value

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

    def call_started(self, moment: Moment | None) -> Any:
        """Begins the timing of one denoiser call, which is no step where it has no moment; the result goes to
        `call_ended`."""
        record = self.current
        if record is None:
            return None
        if moment is None:
            record.filling_calls += 1
        else:
            record._steps[moment.chunk, moment.step] = None
            if moment.branch not in record.branches:
                record.branches.append(moment.branch)
        now = mark(record._device)
        if record.by_calls and record._ended is None:
            record._began = now
        return now

    def call_ended(self, started: Any) -> None:
        """Ends the timing of one denoiser call."""
        record = self.current
        if record is not None:
            now = mark(record._device)
            record._calls.append((started, now))
            if record.by_calls:
                record._ended = now


def when(moment: Moment) -> When:
    """A moment as records name it."""
    return moment.denoiser, moment.branch, (moment.chunk, moment.step)


def _in_words(blocks: int) -> str:
    """The places of the bits, neighbours as a range."""
    places = [place for place in range(blocks.bit_length()) if blocks >> place & 1]
    ends = [place for place in places if not blocks >> (place + 1) & 1]
    starts = [place for place in places if place == 0 or not blocks >> (place - 1) & 1]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _joined(values: list[torch.Tensor]) -> list[torch.Tensor]:
    # A model that is spread over several devices has figures on each.
    return [torch.cat(values)] if len({value.device for value in values}) == 1 else values
