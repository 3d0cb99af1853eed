"""What the block caches share as methods: one mechanism under different rules, and the record."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from accel.methods.base import Context, Method
from accel.methods.block_deltas import BlockDeltas, Captured, Plan
from accel.methods.needs import FAST_DEVICES, Needs, Slot
from accel.methods.segments import Streams
from accel.pipelines.sites import Denoiser
from accel.runtime.clock import Moment
from accel.runtime.recorder import RunRecord


class BlockCache(Method):
    """A cache of block changes on one pipeline; a subclass is its rule."""

    slot: ClassVar[Slot] = "blocks"
    needs: ClassVar[Needs] = Needs(steps=8, devices=FAST_DEVICES)

    def __init__(self, config: Any, context: Context, **deltas: Any) -> None:
        super().__init__(config, context)
        self._deltas = BlockDeltas(config.method, context, self, **deltas)

    @abstractmethod
    def plans(self, moment: Moment, denoiser: Denoiser, streams: Streams) -> Sequence[Plan]:
        """The units of a call: see `accel.methods.block_deltas.Rule`."""

    def decide(self, moment: Moment, plan: Plan) -> Plan:
        """The decision on a unit that asks."""
        return plan

    def measured(self, moment: Moment, captured: Captured) -> None:
        """Hears of what was captured."""

    @abstractmethod
    def why_idle(self, record: RunRecord) -> str | None:
        """Which setting left nothing to reuse, or None where nothing was asked for."""

    def install(self) -> list[Callable[[], None]]:
        return [*self._deltas.install(), self._deltas.clear]

    def start_run(self, num_steps: int) -> None:
        self._deltas.clear()

    def end_run(self) -> None:
        self._deltas.clear()

    def report(self, record: RunRecord) -> dict[str, Any]:
        name = self.config.method
        reused, total = record.count(name, "reused"), record.count(name)
        by_step = record.count_by_step(name, "reused")
        stats = record.figures(name, "delta")
        ledger = record.facts.get((name, "ledger"))
        return {
            "block_calls": total,
            "reused": reused,
            "reused_fraction": reused / total if total else 0.0,
            "reused_by_step": by_step,
            "held_bytes": record.held_bytes[name],
            # When that was held: the most units in a branch, the bytes of the largest, and how many branches held some.
            "units": 0 if ledger is None else ledger.units.most,
            "unit_bytes": 0 if ledger is None else ledger.unit_bytes.most,
            "held_branches": 0 if ledger is None else ledger.branches,
            # Mean over the captures of |Delta| / |h|, both as root mean squares over a stream.
            "relative_change": None if stats is None else _relative(stats),
            "non_finite": 0 if stats is None else int(stats[:, 4].sum()),
        }

    def describe(self, record: RunRecord) -> str:
        report = self.report(record)
        steps = sum(count > 0 for count in report["reused_by_step"])
        ledger = record.facts.get((self.config.method, "ledger"))
        adding_up = "" if ledger is None else f", in {ledger}"
        broken = f"; {report['non_finite']} values of the changes were not finite" if report["non_finite"] else ""
        return (
            f"reused {report['reused']} of {report['block_calls']} block calls "
            f"({report['reused_fraction']:.1%}) in {steps} of {record.steps_seen} steps, "
            f"holding {report['held_bytes'] / 1e6:.1f} MB at most{adding_up}{broken}"
        )

    def idle_reason(self, record: RunRecord) -> str | None:
        name = self.config.method
        if record.count(name, "reused"):
            return None
        why = self.why_idle(record)
        reasons = [reason for method, reason in record.fallbacks if method == name]
        return "; ".join(reasons) or why if why is not None else None


def _relative(stats: torch.Tensor) -> float | None:
    value = (stats[:, 0] / stats[:, 1]).sqrt().mean().item()
    return value if math.isfinite(value) else None
