"""The temporal delta cache of 6Bit-Diffusion (arXiv 2603.18742, section 4.2): skip blocks whose change has settled.

A unit of blocks is skipped while the drift expected of its change, summed over the steps skipped in a row, stays under
a threshold, and for no more than `max_skips` steps. What is expected was found at the last computed step, so that a
step is decided before it begins; it is decided once, on the guidance branch that comes first, and used for all, while
each branch adds its own change. Where the other branches are calls of their own, the numbers arrive on the host during
them; where a step is one call, the host waits for the computed step before it.

Published is one unit for each block and a change that is reused as it is. By what `python -m bench.tdc` prints, one
unit of all blocks whose change is continued along a line (TaylorSeer, arXiv 2503.06923, at order 1) is far better at
equal speed, and holds the least memory where nothing is added between blocks: that is the default, with the line
followed as far as it held the last time, and more weight on the drift of early steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from accel.methods.arriving import Arriving, summed
from accel.methods.base import Context, Keyword, MethodConfig, Toward, register, steps_in
from accel.methods.block_cache import BlockCache
from accel.methods.block_deltas import Captured, Plan
from accel.methods.drift import Drift, early_weight
from accel.methods.held_delta import FLOAT8
from accel.methods.segments import Streams
from accel.pipelines.context_parallel import Ranks, sharing_tokens
from accel.pipelines.sites import Denoiser
from accel.runtime.clock import Moment
from accel.runtime.recorder import RunRecord

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
_DTYPES = {"model": None, "bfloat16": torch.bfloat16, "float8": FLOAT8}


class TemporalDeltaCacheConfig(MethodConfig):
    """Settings of the temporal delta cache.

    Attributes:
        threshold: Drift at which a unit is computed again, relative to its change; 0 skips nothing and gives the bits
            of the plain pipeline. The paper names no value; 0.2 is chosen by us.
        max_skips: Most steps skipped in a row. The paper uses 2; 3 is chosen by us for a change that is continued.
        units: How many units of neighbouring blocks are decided on, each with a change of its own; "blocks" makes each
            block one, as published; "probe" computes the first block always and decides on all others by the drift of
            its change, as found in the same step (which waits for the device once a step). 1 is chosen by us.
        order: 1 continues a change along a line through its last two captures, by the share of it that would have been
            right at the last computed step, and holds two tensors for each; 0 reuses it as it is, as published.
        early: Fraction of the run in which drift counts more, because the result depends more on it: at a fraction p of
            the run (early / p)² times. 0.35 is chosen by us (bench/results/cpu/one_step_quick_24_steps.md); the paper
            has no such weight, which is 0.
        dense_steps: Fraction of the run's steps, from the start, always computed, at least as many as it takes to know
            a drift. 0.1 is chosen by us.
        dense_final_steps: Fraction of the run's steps, at the end, always computed, a begun one whole. 0.02 (the last
            of up to 50 steps) is chosen by us.
        delta_dtype: How changes are held: "model" for the dtype of the tokens, "bfloat16", or "float8" with a scale
            for each token. While a new change is made, the old one is there too, and with "float8" both of them also in
            the dtype of the tokens.
        memory_limit: Gigabytes (1e9 bytes) that the changes of all guidance branches may take; units are joined until
            they fit. Where the model adds something between blocks, a unit has a change for each stretch of blocks in
            between; those for which no room is left are not kept, and their blocks are computed. Not counted is what is
            there for a moment only: an old change, until the new one is made. None and infinity set no limit.
    """

    method: ClassVar[str] = "tdc"
    keyword: ClassVar[Keyword] = "cache"
    levers: ClassVar[dict[str, tuple[str, ...]]] = {
        "computed": ("threshold", "max_skips", "early", "dense_steps", "dense_final_steps"),
        "reused": ("threshold", "max_skips", "early", "dense_steps", "dense_final_steps"),
    }
    approximate: ClassVar[frozenset[str]] = frozenset({"reused"})
    toward_plain: ClassVar[dict[str, Toward]] = {
        "threshold": "lower",
        "max_skips": "lower",
        "early": "raise",
        "dense_steps": "raise",
        "dense_final_steps": "raise",
    }

    threshold: Annotated[float, Field(ge=0.0)] = 0.2
    max_skips: Annotated[int, Field(ge=0)] = 3
    units: Annotated[int, Field(ge=1)] | Literal["blocks", "probe"] = 1
    order: Literal[0, 1] = 1
    early: Fraction = 0.35
    dense_steps: Fraction = 0.1
    dense_final_steps: Fraction = 0.02
    delta_dtype: Literal["model", "bfloat16", "float8"] = "model"
    memory_limit: Annotated[float, Field(gt=0.0)] | None = None


@register(TemporalDeltaCacheConfig)
class TemporalDeltaCache(BlockCache):
    """The temporal delta cache on one pipeline."""

    config: TemporalDeltaCacheConfig

    def __init__(self, config: TemporalDeltaCacheConfig, context: Context) -> None:
        dtype = _DTYPES[config.delta_dtype]
        nbytes = math.inf if config.memory_limit is None else config.memory_limit * 1e9
        limit = round(nbytes) if math.isfinite(nbytes) else None
        super().__init__(config, context, order=config.order, compare=True, dtype=dtype, limit=limit)
        self._open = range(0)
        self._num_steps = 1
        self._most_units = 0
        self._forget()

    def start_run(self, num_steps: int) -> None:
        super().start_run(num_steps)
        config = self.config
        self._num_steps = num_steps
        first = max(steps_in(config.dense_steps, num_steps), 2 + config.order)
        # The steps between the dense ones at both ends.
        self._open = range(first, num_steps - steps_in(config.dense_final_steps, num_steps))
        self._most_units = 0
        self._forget()

    def start_call(self, moment: Moment) -> None:
        if self.config.units == "probe":
            self.context.board.demand_dense(0)

    def end_run(self) -> None:
        super().end_run()
        self._forget()

    def _forget(self) -> None:
        self._period: tuple[int, str] | None = None
        self._step = -1
        self._branch = ""
        self._plans: list[Plan] = []
        self._units: list[range] = []
        self._drifts: dict[int, Drift] = {}
        # Under the first block of a unit and the steps since its capture before.
        self._arriving: Arriving[tuple[int, int | None]] = Arriving()
        self._ranks: Ranks | None = None

    def plans(self, moment: Moment, denoiser: Denoiser, streams: Streams) -> Sequence[Plan]:
        period = (moment.chunk, moment.denoiser)
        if period != self._period:
            self._forget()
            self._period = period
        if moment.step != self._step:
            self._receive()
            if moment.branch != self._branch:
                for drift in self._drifts.values():
                    drift.forget_slope()
            self._step, self._branch = moment.step, moment.branch
            self._ranks = sharing_tokens(denoiser.module)
            units = self._layout(denoiser, streams)
            if units != self._units:
                self._units = units
                self._drifts.clear()
            if self.config.units == "probe" and len(units) == 2:
                probe, rest = units
                self._plans = [Plan(probe, capture=self._captures(moment.step, probe=True)), Plan(rest, asks=True)]
            else:
                self._plans = [self._plan(moment.step, blocks) for blocks in units]
        return self._plans

    def decide(self, moment: Moment, plan: Plan) -> Plan:
        """On the blocks behind the probe, whose change of this step has just been found."""
        self._receive()
        self._drift(plan.blocks[0]).rate = self._drift(0).rate
        decided = self._plan(moment.step, plan.blocks)
        self._plans = [decided if known is plan else known for known in self._plans]
        return decided

    def measured(self, moment: Moment, captured: Captured) -> None:
        if moment.branch == self._branch:
            self._arriving.add((captured.blocks[0], captured.gap), captured.statistics, self._ranks)

    def _receive(self) -> None:
        for (unit, gap), parts in self._arriving.take():
            self._drift(unit).computed(summed(parts), gap)

    def _drift(self, unit: int) -> Drift:
        """That of the unit that begins at this block."""
        return self._drifts.setdefault(unit, Drift(self.config.order))

    def _plan(self, step: int, blocks: range) -> Plan:
        config = self.config
        drift = self._drift(blocks[0])
        weight = early_weight(step / self._num_steps, config.early)
        if step in self._open and drift.may_skip(config.threshold, config.max_skips, weight):
            drift.skip(weight)
            # A branch that was not called when the deciding one computed has something older, which is too old.
            return Plan(blocks, reuse=True, since=step - drift.skips, reach=drift.reach)
        return Plan(blocks, capture=self._captures(step))

    def _captures(self, step: int, *, probe: bool = False) -> bool:
        """Whether a later step may need what this one computes; or this step itself, what is computed of a probe."""
        config = self.config
        # A drift is known after two captures, and after one more where it is that of a line.
        needed = range(self._open.start - 2 - config.order, self._open.stop - (0 if probe else 1))
        return config.threshold > 0 and config.max_skips > 0 and len(self._open) > 0 and step in needed

    def _layout(self, denoiser: Denoiser, streams: Streams) -> list[range]:
        """The units of a denoiser: as many as were asked for and fit into memory, by what is known in this step."""
        config, number = self.config, len(denoiser.blocks)
        asked = {"blocks": number, "probe": 2}.get(str(config.units), config.units)
        units = fitting = min(int(asked), number)
        if self._deltas.limit is not None:
            each = self._deltas.bytes_of(streams) * self._deltas.branches
            fitting = min(units, self._deltas.limit // each)
            if fitting < units:
                text = (
                    f"memory_limit={config.memory_limit} holds {fitting} of {units} units of {each / 1e9:.3g} GB each"
                )
                self.context.recorder.note(f"{config.method}: {text}")
        borders = [round(i * number / fitting) for i in range(fitting + 1)] if fitting else []
        if config.units == "probe" and fitting == 2:
            borders = [0, 1, number]
        self._most_units = max(self._most_units, fitting)
        return [range(a, b) for a, b in itertools.pairwise(borders)]

    def why_idle(self, record: RunRecord) -> str | None:
        config = self.config
        if config.threshold == 0 or config.max_skips == 0:
            return None
        if not self._most_units:
            return f"memory_limit={config.memory_limit} holds no unit: raise it, or set delta_dtype='float8'"
        if not len(self._open):
            return (
                f"none of {record.num_steps} steps is left to skip with dense_steps={config.dense_steps} and "
                f"dense_final_steps={config.dense_final_steps}: use more steps"
            )
        return f"no change was steady enough for threshold={config.threshold}: raise it, or use more steps"
