"""Exact blocks for a prior that stands alone: those with most of the attention, measured where everything is computed.

The measure is AdaSpa's (arXiv 2502.21079), with the log-sum-exp that computing everything has just given.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from accel.methods.base import Context, steps_in
from accel.methods.residual import Residuals
from accel.methods.sparse_attention import SparseAttention
from accel.methods.sparse_call import SparseCall, highest_blocks
from accel.runtime.clock import Moment


class MassSelection(SparseAttention):
    """The sparse attention beside such a prior; `config` is the prior's, with density, dense_steps and the like."""

    def __init__(self, config: Any, context: Context, residuals: Residuals) -> None:
        super().__init__(config, context)
        self._residuals = residuals

    def scheduled_dense(self, moment: Moment, layer: int) -> bool:
        config = self.config
        first = steps_in(config.dense_steps, moment.num_steps)
        return config.interval == 1 or config.density == 1.0 or moment.step < first

    def note_call(self, what: str, moment: Moment, layer: int) -> None:
        """Does nothing: the prior counts the same calls, under the same name."""

    def why_all_dense(self, num_steps: int) -> str:
        return f"dense_steps={self.config.dense_steps} leaves it none of {num_steps} steps: lower it"

    def sparse(self, call: SparseCall) -> tuple[Tensor, Tensor | None]:
        kept = self._residuals.at(call)
        lse = None if kept is None else kept.total
        if lse is None:
            _, lse = call.dense(call.rows(call.image))
        mass, _ = call.mass(lse)
        chosen = highest_blocks(call, mass, self.config.density)
        return call.attend(chosen, "none", None), chosen[1]
