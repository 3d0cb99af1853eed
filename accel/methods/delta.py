"""The delta cache of Delta-DiT (arXiv 2406.01125): a fixed schedule that reuses the change of rear, then front blocks.

Early steps settle the outline, to which the rear blocks add little; late steps settle the detail, to which the front
blocks add little. So the change of the rear blocks is reused before the boundary and that of the front blocks after it
(section 3.3 of the paper).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from accel.methods.base import Context, Keyword, MethodConfig, Toward, register, steps_in
from accel.methods.block_cache import BlockCache
from accel.methods.block_deltas import Plan
from accel.methods.segments import Streams
from accel.pipelines.sites import Denoiser
from accel.runtime.clock import Moment
from accel.runtime.recorder import RunRecord

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class DeltaCacheConfig(MethodConfig):
    """Settings of the delta cache.

    Attributes:
        interval: The run's blocks are computed every `interval`-th step and their change is reused in between. 1 reuses
            nothing and gives the bits of the plain pipeline. The paper uses 2.
        cached_blocks: Fraction of the denoiser's blocks in the run; the paper's N_c of 21 in 28 blocks is 0.75.
        boundary: Fraction of the run's steps, from the start, that reuse the rear blocks; the steps after it reuse the
            front blocks. The paper counts the steps that remain: its b of 12 in 20 is 0.4 here.
        dense_steps: Fraction of the run's steps, from the start, always computed; the first step always is. 0.1
            is chosen by us (`python -m bench.tdc`).
        dense_final_steps: Fraction of the run's steps, at the end, that are always computed.
    """

    method: ClassVar[str] = "delta"
    keyword: ClassVar[Keyword] = "cache"
    levers: ClassVar[dict[str, tuple[str, ...]]] = {
        "computed": ("interval", "cached_blocks", "dense_steps", "dense_final_steps"),
        "reused": ("interval", "cached_blocks", "boundary", "dense_steps", "dense_final_steps"),
    }
    approximate: ClassVar[frozenset[str]] = frozenset({"reused"})
    toward_plain: ClassVar[dict[str, Toward]] = {
        "interval": "lower",
        "cached_blocks": "lower",
        "dense_steps": "raise",
        "dense_final_steps": "raise",
    }

    interval: Annotated[int, Field(ge=1)] = 2
    cached_blocks: Fraction = 0.75
    boundary: Fraction = 0.4
    dense_steps: Fraction = 0.1
    dense_final_steps: Fraction = 0.0


class DeltaSchedule:
    """The rule for one denoiser: which blocks a step reuses, known before the run begins."""

    def __init__(self, config: DeltaCacheConfig, num_blocks: int, num_steps: int) -> None:
        self._interval = config.interval
        self._switch = round(config.boundary * num_steps)
        self._dense_until = steps_in(config.dense_steps, num_steps)
        self._dense_from = num_steps - steps_in(config.dense_final_steps, num_steps)
        self.cached = round(config.cached_blocks * num_blocks)
        self._rear = range(num_blocks - self.cached, num_blocks)
        self._front = range(self.cached)

    def reuses(self, step: int) -> bool:
        """Whether the step adds the change that an earlier step captured."""
        return self._age(step) != 0

    def plan(self, step: int) -> Plan:
        """What the step does; a step captures only when the next one reuses."""
        blocks = self._rear if step < self._switch else self._front
        age = self._age(step)
        return Plan(blocks, reuse=age > 0, capture=age == 0 and self.reuses(step + 1), since=step - age)

    def _age(self, step: int) -> int:
        # Steps since the change that the step reuses was captured; 0 for a step that is computed.
        if not self.cached or not self._dense_until <= step < self._dense_from:
            return 0
        phase = 0 if step < self._switch else self._switch
        # The last of the dense steps captures, so that the first step behind them can reuse.
        return (step - max(phase, self._dense_until - 1)) % self._interval


@register(DeltaCacheConfig)
class DeltaCache(BlockCache):
    """The delta cache on one pipeline."""

    config: DeltaCacheConfig

    def __init__(self, config: DeltaCacheConfig, context: Context) -> None:
        super().__init__(config, context)
        self._schedules: dict[str, DeltaSchedule] = {}

    def start_run(self, num_steps: int) -> None:
        super().start_run(num_steps)
        self._schedules = {
            denoiser.name: DeltaSchedule(self.config, len(denoiser.blocks), num_steps)
            for denoiser in self.context.facts.denoisers
        }

    def plans(self, moment: Moment, denoiser: Denoiser, streams: Streams) -> list[Plan]:
        return [self._schedules[denoiser.name].plan(moment.step)]

    def why_idle(self, record: RunRecord) -> str | None:
        config = self.config
        if config.interval == 1 or config.cached_blocks == 0:
            return None
        if not any(schedule.cached for schedule in self._schedules.values()):
            return f"cached_blocks={config.cached_blocks} of so few blocks is none: raise it"
        return (
            f"none of {record.num_steps} steps is left to reuse with interval={config.interval}, "
            f"dense_steps={config.dense_steps} and dense_final_steps={config.dense_final_steps}: use more steps"
        )
