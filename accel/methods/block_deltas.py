"""The mechanism under the block caches: keep the change that a run of blocks makes, and add it instead of computing.

A rule decides for each call of a denoiser which blocks form the run and whether their change is captured or reused.
The change is kept per guidance branch and per segment: blocks whose input is the very output of the block before. Where
the parent module changes the hidden states between two blocks (the hints of VACE, the residuals of a ControlNet), the
object or its version differs, the segment ends, and the parent's addition is in no delta; it is added afresh on the
steps that reuse. So equal inputs give equal outputs, to rounding, in every family.

Source: Delta-DiT, arXiv 2406.01125, section 3: Delta = F(h) - h on a full step, h + Delta on a cached one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from accel.kernels.delta import apply_delta, compute_delta
from accel.methods.base import Context
from accel.pipelines.sites import BlockSite, Denoiser
from accel.runtime.clock import Moment
from accel.runtime.state import BranchState

Streams = tuple[torch.Tensor, ...]

_IN_PLACE = "the tokens are changed in place, by a block or between blocks"


@dataclass(frozen=True)
class Plan:
    """What a rule wants of one call: the run of blocks, and whether to reuse its change or to capture it.

    A change that was captured before step `since` is too old to be reused, or belongs to another run of blocks.
    """

    blocks: range = range(0)
    reuse: bool = False
    capture: bool = False
    since: int = 0


@dataclass(frozen=True)
class _Segment:
    first: int
    last: int
    deltas: Streams

    def fits(self, streams: Streams) -> bool:
        return all(
            s.shape == d.shape and s.device == d.device and s.dtype == d.dtype
            for s, d in zip(streams, self.deltas, strict=True)
        )

    @property
    def nbytes(self) -> int:
        return sum(delta.nbytes for delta in self.deltas)


@dataclass
class _Open:
    """A segment that is being captured."""

    first: int
    last: int
    inputs: Streams
    input_versions: list[int]
    outputs: Streams
    output_versions: list[int]


@dataclass
class _Branch:
    plan: Plan = field(default_factory=Plan)
    segments: dict[int, _Segment] = field(default_factory=dict)
    captured: int = -1
    active: _Segment | None = None
    open: _Open | None = None


class BlockDeltas:
    """Captures and reuses block changes as `rule(moment, denoiser)` says, under the method's name."""

    def __init__(self, name: str, context: Context, rule: Callable[[Moment, Denoiser], Plan]) -> None:
        self._name = name
        self._context = context
        self._rule = rule
        self._state: BranchState[_Branch] = BranchState(_Branch)

    def install(self) -> list[Callable[[], None]]:
        """Hooks every block; returns the undo."""
        return [
            self._context.hooks.add(site.module, partial(self._intercept, denoiser, site))
            for denoiser in self._context.facts.denoisers
            for site in denoiser.blocks
        ]

    def clear(self) -> None:
        """Drops all deltas."""
        self._state.clear()

    def _intercept(
        self,
        denoiser: Denoiser,
        site: BlockSite,
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        moment = self._context.clock.now
        if moment is None:
            return proceed(*args, **kwargs)
        branch = self._state.at(moment)
        if site.index == 0:
            self._begin(branch, moment, denoiser)
        plan = branch.plan
        if site.index not in plan.blocks:
            return self._computed(site, moment, proceed(*args, **kwargs))
        streams = site.streams(args, kwargs)
        if plan.reuse:
            reused = self._reuse(branch, site, streams)
            if reused is not None:
                self._context.board.post(self._name, "reused", moment, site.index)
                return site.pack(reused)
        output = proceed(*args, **kwargs)
        if plan.capture:
            self._capture(branch, site, streams, site.unpack(output))
            if site.index == plan.blocks[-1]:
                self._close(branch)
        return self._computed(site, moment, output)

    def _computed(self, site: BlockSite, moment: Moment, output: Any) -> Any:
        self._context.board.post(self._name, "computed", moment, site.index)
        return output

    def _begin(self, branch: _Branch, moment: Moment, denoiser: Denoiser) -> None:
        plan = self._rule(moment, denoiser)
        refused = self._context.board.compute_demanded()
        if plan.reuse and (branch.captured < plan.since or not branch.segments):
            refused = refused or f"{moment.denoiser} has nothing fresh to reuse for {moment.branch}"
        if plan.reuse and refused:
            self._context.recorder.fallback(self._name, refused)
            plan = Plan(plan.blocks, capture=True)
        if plan.capture:
            branch.segments, branch.captured = {}, moment.step
        branch.plan, branch.active, branch.open = plan, None, None

    def _reuse(self, branch: _Branch, site: BlockSite, streams: Streams) -> Streams | None:
        if branch.active is not None and site.index <= branch.active.last:
            return streams
        branch.active = branch.segments.get(site.index)
        if branch.active is None or not branch.active.fits(streams):
            reason = "no delta starts at the block" if branch.active is None else "the shape of the tokens changed"
            self._context.recorder.fallback(self._name, reason)
            branch.active = None
            return None
        return tuple(apply_delta(s, d) for s, d in zip(streams, branch.active.deltas, strict=True))

    def _capture(self, branch: _Branch, site: BlockSite, inputs: Streams, outputs: Streams) -> None:
        running = branch.open
        if running is not None and all(a is b for a, b in zip(inputs, running.outputs, strict=True)):
            if _versions(inputs) != running.output_versions:
                self._context.recorder.fallback(self._name, _IN_PLACE)
                branch.open = None
                return
            running.last, running.outputs, running.output_versions = site.index, outputs, _versions(outputs)
            return
        self._close(branch)
        branch.open = _Open(site.index, site.index, inputs, _versions(inputs), outputs, _versions(outputs))

    def _close(self, branch: _Branch) -> None:
        running, branch.open = branch.open, None
        if running is None:
            return
        if _versions(running.inputs + running.outputs) != running.input_versions + running.output_versions:
            self._context.recorder.fallback(self._name, _IN_PLACE)
            return
        deltas = []
        for output, hidden in zip(running.outputs, running.inputs, strict=True):
            delta, stats = compute_delta(output, hidden)
            deltas.append(delta)
            self._context.recorder.figure(self._name, "delta", stats)
        branch.segments[running.first] = _Segment(running.first, running.last, tuple(deltas))
        held = sum(s.nbytes for value in self._state.values() for s in value.segments.values())
        self._context.recorder.held(self._name, held)


def _versions(streams: Streams) -> list[int]:
    # Tensors made in inference mode cannot be followed; there the objects alone tell.
    return [0 if tensor.is_inference() else tensor._version for tensor in streams]
