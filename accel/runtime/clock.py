"""The step clock: which run, chunk, step and guidance branch a call of the denoiser belongs to.

A run is the denoising loop of one pipeline call. It begins when the pipeline makes its progress bar and ends when the
bar is closed, also by an exception (`accel.runtime.runs` watches for both, and `accel.runtime.call_runs` for the calls
of pipelines that make no such bar). Calls outside of a run, or from another
thread, have no moment: a denoiser that another pipeline uses too, or that is called by hand, runs plainly then.
So do the calls of another pipeline that a callback makes inside the run, where the pipeline of the run tells the
timestep that it is at: it does not go on meanwhile, although branches come again.

Within a run a new step begins when a branch that was seen already comes again; a second-order scheduler evaluates the
model twice for most of its steps, and each evaluation counts as a step here. Where a pipeline calls twice per step but
does not tell the branch, the second call is known by its equal timestep and equal hidden states: a second-order
scheduler, and a timestep in half precision, may repeat a timestep, but not on the same hidden states. Where it tells
the timestep that it is at, the device need not be asked: another object is another step. Where a pipeline does tell the
branch, a call without one was made by hand, and has no moment either.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from accel.pipelines.facts import Guidance

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Moment:
    """Where a call of the denoiser stands; all counts begin at 0, `step` and `num_steps` are those of the chunk."""

    run: int
    chunk: int
    step: int
    num_steps: int
    branch: str
    denoiser: str
    # Tokens along (time, height, width), where the call tells.
    grid: Grid | None = None


class Clock:
    """Counts the calls of a pipeline's denoisers; which is what `now` tells."""

    def __init__(self, guidance: Guidance) -> None:
        self._now: Moment | None = None
        self.runs = 0
        self._guidance = guidance
        self._running = False
        self._guided = True
        self._thread = 0
        self._branch: str | None = None
        self._timestep: Any = None
        self._sample: Any = None
        self._told: Any = None
        self._reset()

    @property
    def now(self) -> Moment | None:
        """The moment of the denoiser call that is under way in this thread."""
        return self._now if self._here else None

    @property
    def running(self) -> bool:
        """Whether a run is on in this thread."""
        return self._running and self._here

    @property
    def branches(self) -> int:
        """How many calls, each of a guidance branch of its own, a step of the run will have as far as it is known.

        Those that the pipeline makes as its user asks are among them, asked for or not. A user may ask a pipeline for
        more than its class has by itself, as for true guidance of a distilled model.
        """
        guidance = self._guidance
        by_text = len(guidance.order) if guidance.form == "separate" and self._guided else 1
        return by_text + len(guidance.further)

    @property
    def _here(self) -> bool:
        return threading.get_ident() == self._thread

    def start_run(self, num_steps: int, *, guided: bool = True) -> None:
        """Begins a run of `num_steps` model evaluations per branch, in each chunk; `guided`: whether with guidance."""
        self._reset()
        self._guided = guided
        self._num_steps = num_steps
        self._running = True
        self._thread = threading.get_ident()
        self.runs += 1

    def end_run(self) -> None:
        """Ends the run; does nothing when none is on."""
        self._running = False
        self._timestep = self._sample = self._told = None

    @contextlib.contextmanager
    def branch(self, name: str) -> Iterator[None]:
        """Tells the branch of the calls within, as a pipeline does through `cache_context`."""
        if not self._here:
            yield
            return
        before, self._branch = self._branch, name
        try:
            yield
        finally:
            self._branch = before

    @contextlib.contextmanager
    def call(
        self,
        denoiser: str,
        timestep: Any,
        sample: Any = None,
        grid: Callable[[], Grid | None] = lambda: None,
        chunk: int = 0,
        branch: str | None = None,
        told: torch.Tensor | None = None,
    ) -> Iterator[Moment | None]:
        """One call of a denoiser at `timestep` on the hidden states `sample`, during which `now` is its moment.

        `grid` tells its tokens; it is asked within a run only. `chunk`: how many chunks were made before. `branch`:
        that of the call, where its arguments tell. `told`: the timestep that the pipeline says it is at, another object
        in every step; None where it says none.
        """
        by_hand = self._guidance.named and self._branch is None
        if not self.running or by_hand:
            yield None
            return
        before, self._now = self._now, self._advance(denoiser, timestep, sample, grid, chunk, branch, told)
        try:
            yield self._now
        finally:
            self._now = before

    def _reset(self) -> None:
        self._now = None
        self._step = self._chunk = 0
        self._timestep = self._sample = self._told = None
        # Whether others call while the pipeline stays where it is.
        self._elsewhere = False
        self._seen: list[str] = []

    def _advance(
        self,
        denoiser: str,
        timestep: Any,
        sample: Any,
        grid: Callable[[], Grid | None],
        chunk: int,
        branch: str | None,
        told: torch.Tensor | None,
    ) -> Moment | None:
        if chunk != self._chunk:
            self._chunk = chunk
            self._step = 0
            self._seen = []
        branch = branch or self._branch or self._unnamed_branch(timestep, sample, told)
        stayed = told is not None and told is self._told
        self._elsewhere = stayed and (self._elsewhere or branch in self._seen)
        if self._elsewhere:
            return None
        if branch in self._seen:
            self._step += 1
            self._seen = []
        self._seen.append(branch)
        self._timestep, self._sample, self._told = timestep, sample, told
        return Moment(self.runs - 1, self._chunk, self._step, self._num_steps, branch, denoiser, grid())

    def _unnamed_branch(self, timestep: Any, sample: Any, told: torch.Tensor | None) -> str:
        order = self._guidance.order
        if self._guidance.form == "batched":
            return "cond_uncond"  # the name that diffusers gives to such a call
        position = len(self._seen)
        if 0 < position < len(order) and self._same_step(timestep, sample, told):
            return order[position]
        return order[0]

    def _same_step(self, timestep: Any, sample: Any, told: torch.Tensor | None) -> bool:
        # Asking the device waits for all that it has still to do.
        if told is not None and told is not self._told:
            return False
        if timestep is self._timestep or (told is not None and sample is self._sample):
            return True
        return _equal(timestep, self._timestep) and _equal(sample, self._sample)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a is b or (a.shape == b.shape and bool(torch.equal(a, b)))
    return bool(a == b)
