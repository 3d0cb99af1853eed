"""The delta cache of Delta-DiT (arXiv 2406.01125): a fixed schedule that reuses the change of rear, then front blocks.

Early steps settle the outline, to which the rear blocks add little; late steps settle the detail, to which the front
blocks add little. So the change of the rear blocks is reused before the boundary and that of the front blocks after it
(section 3.3 of the paper).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import Field

from accel.methods.base import Context, Keyword, Method, MethodConfig, Slot, register, steps_in
from accel.methods.block_deltas import BlockDeltas, Plan
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
            is chosen by us: with 0 the cache did no better than fewer steps (bench/results/cpu/delta_cache.md).
        dense_final_steps: Fraction of the run's steps, at the end, that are always computed.
    """

    method: ClassVar[str] = "delta"
    keyword: ClassVar[Keyword] = "cache"

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
class DeltaCache(Method):
    """The delta cache on one pipeline."""

    slot: ClassVar[Slot] = "blocks"
    config: DeltaCacheConfig

    def __init__(self, config: DeltaCacheConfig, context: Context) -> None:
        super().__init__(config, context)
        self._deltas = BlockDeltas(config.method, context, self._plan)
        self._schedules: dict[str, DeltaSchedule] = {}

    def install(self) -> list[Callable[[], None]]:
        return [*self._deltas.install(), self._deltas.clear]

    def start_run(self, num_steps: int) -> None:
        self._deltas.clear()
        self._schedules = {
            denoiser.name: DeltaSchedule(self.config, len(denoiser.blocks), num_steps)
            for denoiser in self.context.facts.denoisers
        }

    def end_run(self) -> None:
        self._deltas.clear()

    def report(self, record: RunRecord) -> dict[str, Any]:
        name = self.config.method
        reused, total = record.count(name, "reused"), record.count(name)
        by_step = record.count_by_step(name, "reused")
        stats = record.figures(name, "delta")
        return {
            "block_calls": total,
            "reused": reused,
            "reused_fraction": reused / total if total else 0.0,
            "reused_by_step": by_step,
            "held_bytes": record.held_bytes[name],
            # Mean over the captures of |Delta| / |h|, both as root mean squares over a stream.
            "relative_change": None if stats is None else _finite((stats[:, 0] / stats[:, 1]).sqrt().mean().item()),
            "non_finite": 0 if stats is None else int(stats[:, 4].sum()),
        }

    def describe(self, record: RunRecord) -> str:
        report = self.report(record)
        steps = sum(count > 0 for count in report["reused_by_step"])
        broken = f"; {report['non_finite']} values of the changes were not finite" if report["non_finite"] else ""
        return (
            f"reused {report['reused']} of {report['block_calls']} block calls "
            f"({report['reused_fraction']:.1%}) in {steps} of {record.steps_seen} steps, "
            f"holding {report['held_bytes'] / 1e6:.1f} MB at most{broken}"
        )

    def idle_reason(self, record: RunRecord) -> str | None:
        config, name = self.config, self.config.method
        if config.interval == 1 or config.cached_blocks == 0 or record.count(name, "reused"):
            return None
        reasons = [reason for method, reason in record.fallbacks if method == name]
        if reasons:
            return "; ".join(reasons)
        if not any(schedule.cached for schedule in self._schedules.values()):
            return f"cached_blocks={config.cached_blocks} of so few blocks is none: raise it"
        return (
            f"none of {record.num_steps} steps is left to reuse with interval={config.interval}, "
            f"dense_steps={config.dense_steps} and dense_final_steps={config.dense_final_steps}: use more steps"
        )

    def _plan(self, moment: Moment, denoiser: Denoiser) -> Plan:
        return self._schedules[denoiser.name].plan(moment.step)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
