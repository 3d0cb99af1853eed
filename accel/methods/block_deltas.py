"""The mechanism under the block caches: keep the change that blocks make, and add it instead of computing them.

A rule cuts the blocks of a call into units and says of each whether its change is captured or reused. The change is
kept per guidance branch and per segment of a unit: blocks whose input is the very output of the block before. Where the
parent module changes the hidden states between two blocks (the hints of VACE, the residuals of a ControlNet), the
object or its version differs, the segment ends, and the parent's addition is in no delta; it is added afresh on the
steps that reuse. So equal inputs give equal outputs, to rounding, in every family.

Sources: Delta-DiT, arXiv 2406.01125, section 3: Delta = F(h) - h on a full step, h + Delta on a cached one; TaylorSeer,
arXiv 2503.06923, for continuing what is cached along a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch.profiler import record_function

from accel.methods.base import Context
from accel.methods.delta_ledger import HeldUnit, Ledger
from accel.methods.held_delta import HeldDelta
from accel.methods.segments import OpenSegment, Segment, Streams, alike, versions
from accel.pipelines.sites import BlockSite, Denoiser
from accel.runtime.board import TokenOrder
from accel.runtime.clock import Moment
from accel.runtime.state import BranchState

_IN_PLACE = "the tokens are changed in place, by a block or between blocks"
_UNLIKE = "a block changes the shape, the dtype or the device of its tokens, and is computed"
_RESHAPED = "the shape of the tokens changed"


@dataclass(frozen=True)
class Plan:
    """What a rule wants of a unit of neighbouring blocks in one call: to reuse its change or to capture it.

    A change that was captured before step `since` is too old to be reused; of its slope the share `reach` is followed.
    With `asks`, the rule decides when the call has come to the unit.
    """

    blocks: range = range(0)
    reuse: bool = False
    capture: bool = False
    since: int = 0
    reach: float = 1.0
    asks: bool = False


@dataclass(frozen=True)
class Captured:
    """A unit whose change was captured in a call.

    `statistics` is float32 (6,) on the device: those of `accel.kernels.delta`, summed over the unit's streams. `gap` is
    the number of steps since the capture before, None when there was none to compare with.
    """

    blocks: range
    statistics: torch.Tensor
    gap: int | None


class Rule(Protocol):
    """Decides what is reused."""

    def plans(self, moment: Moment, denoiser: Denoiser, streams: Streams) -> Sequence[Plan]:
        """The units of a call, ascending; blocks in none of them are computed. `streams` enter the first block."""

    def decide(self, moment: Moment, plan: Plan) -> Plan:
        """The decision on a unit that asks, when the call has come to its first block."""

    def measured(self, moment: Moment, captured: Captured) -> None:
        """Hears of every unit that was captured."""


@dataclass
class _Branch:
    plans: dict[int, Plan] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    segments: dict[int, Segment] = field(default_factory=dict)
    # Those that the running capture replaces.
    earlier: dict[int, Segment] = field(default_factory=dict)
    captured: list[tuple[torch.Tensor, int | None]] = field(default_factory=list)
    # Blocks whose change was not kept: there was no room, or it is no difference of tensors that are alike.
    left_out: set[int] = field(default_factory=set)
    # Of the tokens in the changes.
    order: TokenOrder | None = None
    active: Segment | None = None
    open: OpenSegment | None = None

    def units(self) -> list[HeldUnit]:
        """What is held of the units of the last call."""
        found = []
        for plan in self.plans.values():
            held = [segment for first, segment in self.segments.items() if first in plan.blocks]
            sloped = any(delta.slope is not None for segment in held for delta in segment.deltas.values())
            if held:
                found.append(HeldUnit(sum(segment.nbytes for segment in held), len(held), sloped))
        return found


class BlockDeltas:
    """Captures and reuses block changes as a rule says, under the method's name.

    Args:
        name, context: of the method.
        rule: what decides.
        order: 1 continues a change along a line through its last two captures, 0 reuses it as it is.
        compare: whether `rule.measured` needs to know how far a change differs from what a reuse would have added.
        dtype: in which the changes are held; None for that of the tokens.
        limit: bytes that the changes of all guidance branches may take, shared evenly among these; a change that would
            take more is not kept, and its blocks are computed. None sets no limit.
    """

    def __init__(
        self,
        name: str,
        context: Context,
        rule: Rule,
        *,
        order: int = 0,
        compare: bool = False,
        dtype: torch.dtype | None = None,
        limit: int | None = None,
    ) -> None:
        self._name = name
        self._context = context
        self._rule = rule
        self._order = order
        self._compare = compare or order > 0
        self._dtype = dtype
        self.limit = limit
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

    @property
    def branches(self) -> int:
        """Guidance branches that have changes of their own: as many as are to be expected, or as were seen."""
        return max(self._context.clock.branches, len(self._state.values()))

    def bytes_of(self, streams: Iterable[torch.Tensor]) -> int:
        """What a change of such streams takes in one branch."""
        return sum(HeldDelta.bytes_of(stream, sloped=self._order > 0, dtype=self._dtype) for stream in streams)

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
        branch, streams = self._state.at(moment), site.streams(args, kwargs)
        if site.index == 0 or site.index in branch.plans:
            with self._named():
                if site.index == 0:
                    self._begin(branch, moment, denoiser, streams)
                    self._reorder(branch, denoiser)
                if site.index in branch.plans:
                    branch.plan = self._enter(branch, moment, branch.plans[site.index], streams)
        plan = branch.plan
        if site.index not in plan.blocks:
            return self._computed(site, moment, proceed(*args, **kwargs))
        if plan.reuse:
            with self._named():
                reused = self._reuse(branch, site, streams, moment.step, plan.reach)
            if reused is not None:
                self._context.recorder.event(self._name, "reused", moment, site.index)
                return site.pack(reused)
        if plan.capture:
            self._context.board.keep_change(site.index)
        output = proceed(*args, **kwargs)
        if plan.capture:
            with self._named():
                self._capture(branch, moment, site, streams, site.unpack(output, streams))
                if site.index == plan.blocks[-1]:
                    self._leave(branch, moment)
        return self._computed(site, moment, output)

    def _named(self) -> record_function:
        """A range in torch's profiler; without one, some ten microseconds."""
        return record_function(f"accel.cache {self._name}")

    def _computed(self, site: BlockSite, moment: Moment, output: Any) -> Any:
        self._context.recorder.event(self._name, "computed", moment, site.index)
        return output

    def _begin(self, branch: _Branch, moment: Moment, denoiser: Denoiser, streams: Streams) -> None:
        plans = self._rule.plans(moment, denoiser, streams)
        branch.plans = {plan.blocks[0]: plan for plan in plans if plan.blocks}
        branch.plan, branch.active, branch.open = Plan(), None, None
        # What lies across the borders of the units will never be reused.
        branch.segments = {
            first: segment
            for first, segment in branch.segments.items()
            if any(first in plan.blocks and segment.last in plan.blocks for plan in plans)
        }

    def _reorder(self, branch: _Branch, denoiser: Denoiser) -> None:
        """Brings what is held into the order in which this call has its image tokens."""
        before, branch.order = branch.order, self._context.board.order
        if before is branch.order:
            return
        for first, segment in branch.segments.items():
            stream = denoiser.blocks[first].stack.streams.index("hidden_states")
            branch.segments[first] = segment.reordered(stream, before, branch.order)

    def _enter(self, branch: _Branch, moment: Moment, plan: Plan, streams: Streams) -> Plan:
        if plan.asks:
            plan = self._rule.decide(moment, plan)
        held = {first: segment for first, segment in branch.segments.items() if first in plan.blocks}
        if plan.reuse:
            head = held.get(plan.blocks[0])
            refused = self._context.board.compute_demanded()
            if not held or min(segment.step for segment in held.values()) < plan.since:
                refused = refused or f"{moment.denoiser} has nothing fresh to reuse for {moment.branch}"
            elif head is not None and not head.fits(streams):
                refused = refused or _RESHAPED
            if refused:
                self._context.recorder.fallback(self._name, refused)
                plan = Plan(plan.blocks, capture=True)
        if plan.capture:
            branch.earlier = held if self._compare else {}
            branch.captured = []
            branch.left_out -= set(plan.blocks)
            for first in held:
                del branch.segments[first]
        return plan

    def _reuse(self, branch: _Branch, site: BlockSite, streams: Streams, step: int, reach: float) -> Streams | None:
        if branch.active is not None and site.index <= branch.active.last:
            return streams
        branch.active = branch.segments.get(site.index)
        if branch.active is None or not branch.active.fits(streams):
            reason = "no delta starts at the block" if branch.active is None else _RESHAPED
            if branch.active is not None or site.index not in branch.left_out:
                self._context.recorder.fallback(self._name, reason)
            branch.active = None
            return None
        return branch.active.added(streams, reach * (step - branch.active.step))

    def _capture(self, branch: _Branch, moment: Moment, site: BlockSite, inputs: Streams, outputs: Streams) -> None:
        if not alike(inputs, outputs):
            self._context.recorder.fallback(self._name, _UNLIKE)
            self._close(branch, moment)
            branch.left_out.add(site.index)
            return
        running = branch.open
        if running is not None and running.leads_to(inputs):
            if versions(inputs) != running.output_versions:
                self._context.recorder.fallback(self._name, _IN_PLACE)
                branch.open = None
                return
            running.add(site, outputs)
            return
        self._close(branch, moment)
        branch.open = OpenSegment.of(site, inputs, outputs)

    def _close(self, branch: _Branch, moment: Moment) -> None:
        running, branch.open = branch.open, None
        if running is None:
            return
        if not running.intact:
            self._context.recorder.fallback(self._name, _IN_PLACE)
            return
        first, last, changes = running.first, running.last.index, running.changes()
        room = self.bytes_of(output for output, _ in changes.values())
        if not self._has_room(branch, room):
            branch.left_out |= set(range(first, last + 1))
            return
        earlier = branch.earlier.pop(first, None)
        if earlier is not None and not (earlier.last == last and earlier.fits(running.inputs)):
            earlier = None
        gap = None if earlier is None else moment.step - earlier.step
        deltas: dict[int, HeldDelta] = {}
        for place, (output, hidden) in changes.items():
            before = None if earlier is None else earlier.deltas[place]
            deltas[place], stats = HeldDelta.make(
                output, hidden, before, gap or 0, sloped=self._order > 0, dtype=self._dtype
            )
            branch.captured.append((stats, gap))
            self._context.recorder.figure(self._name, "delta", stats)
        branch.segments[first] = Segment(first, last, moment.step, deltas, room)

    def _has_room(self, branch: _Branch, room: int) -> bool:
        if self.limit is None:
            return True
        taken = [sum(segment.room for segment in each.segments.values()) for each in (branch, *self._state.values())]
        if taken[0] + room <= self.limit // self.branches and sum(taken[1:]) + room <= self.limit:
            return True
        text = f"memory_limit={self.limit / 1e9:g} leaves no room for the changes of some blocks, which are computed"
        self._context.recorder.fallback(self._name, text)
        return False

    def _leave(self, branch: _Branch, moment: Moment) -> None:
        """The end of a unit that was captured."""
        self._close(branch, moment)
        branch.earlier = {}
        self._tell_held()
        if self._compare and branch.captured:
            gaps = {gap for _, gap in branch.captured}
            # The streams of a unit may lie on several devices; its first decides.
            device = branch.captured[0][0].device
            total = torch.stack([stats.to(device) for stats, _ in branch.captured]).sum(0)
            self._rule.measured(moment, Captured(branch.plan.blocks, total, gaps.pop() if len(gaps) == 1 else None))
        branch.captured = []

    def _tell_held(self) -> None:
        held = sum(s.nbytes for value in self._state.values() for s in value.segments.values())
        recorder = self._context.recorder
        if recorder.current is not None and held > recorder.current.held_bytes[self._name]:
            recorder.fact(self._name, "ledger", Ledger.of(value.units() for value in self._state.values()))
        recorder.held(self._name, held)
