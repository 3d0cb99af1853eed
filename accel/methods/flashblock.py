"""FlashBlock (arXiv 2602.05305): attention over distant tokens changes slowly and is kept between steps.

This is its form for pipelines that denoise the whole sequence at once, residual reuse beside a sparse attention
(section 2.4 of the paper): every few steps the part that is not exact is computed too, and on the steps between, the
exact blocks go on from it. Without a sparse attention beside it, it chooses the exact blocks itself, by their share of
the attention as measured on the steps that compute everything. Pipelines that generate chunk by chunk have a form of
their own, in `accel.methods.flashblock_chunks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field
from torch import Tensor

from accel.errors import AccelError
from accel.methods.base import Context, Keyword, MethodConfig, Toward, register
from accel.methods.flashblock_calibration import Measurements
from accel.methods.flashblock_chunks import ChunkFlashBlock
from accel.methods.flashblock_form import FlashBlockForm, for_branches
from accel.methods.handover import BlockChoice
from accel.methods.mass_selection import MassSelection
from accel.methods.needs import Brings, Needs, Slot
from accel.methods.residual import Residual, Residuals, needed
from accel.methods.sparse_attention import (
    BRINGS_AN_ORDER,
    BlockSize,
    Density,
    Fraction,
    SparseAttention,
    Tiling,
)
from accel.methods.sparse_call import Blocks, SparseCall, exact_share
from accel.pipelines.facts import Family
from accel.runtime.clock import Moment
from accel.runtime.recorder import RunRecord

_ALONE = {"density": 0.25, "dense_steps": 0.2, "block_size": 64, "tiling": "call"}


class FlashBlockConfig(MethodConfig):
    """Settings of FlashBlock. Those that are None hold for FlashBlock alone; beside a sparse attention that one's
    settings decide, and a pipeline that generates chunk by chunk chooses no blocks.

    Attributes:
        calibration: A file of `accel.measure.calibration.calibrate_flashblock`, by which each head is computed anew at
            the steps that need it; None for the rule of the interval.
        similarity: Cosine between what is kept and what it would be under which a calibration has a head computed
            anew. The paper uses 0.85.
        lse_drift: Change of the log-sum-exp over which it does. The paper uses 0.05.
        interval: Steps from one computation of the blocks that are not exact, or of the attention over earlier chunks,
            to the next; 1 keeps nothing and gives the bits of the attention beside it, or the plain ones. 3 is chosen
            by us for runs without calibration, and measured with the defaults of all other settings alone
            (bench/results/cpu/tdc.md, printed by `python -m bench.tdc`); other values are not measured.
        memory_limit: Gigabytes (1e9 bytes) that all guidance branches together may hold; a run that needs more is
            refused. None is half of what the device has free when the first part is kept in a run.
        density: Fraction of the image's key blocks that are exact on the steps between; None is 0.25, chosen by us. 1
            gives the plain bits. Measured as the interval is: only together with the other defaults.
        dense_steps: Fraction of the run's steps, from the start, that stay dense; None is 0.2, chosen by us. Measured
            as the interval is.
        block_size: Tokens of a block; None is 64.
        tiling: When tokens are ordered so that a block is a compact patch of the picture or of the film: "call",
            "forward" or "none", as in PISA; None is "call".
    """

    method: ClassVar[str] = "flashblock"
    keyword: ClassVar[Keyword] = "cache"
    levers: ClassVar[dict[str, tuple[str, ...]]] = {
        "refreshed": ("interval", "calibration", "similarity", "lse_drift"),
        # The last two where it chooses the blocks itself.
        "reused": ("interval", "calibration", "similarity", "lse_drift", "density", "dense_steps"),
        "dense": ("dense_steps",),
    }
    approximate: ClassVar[frozenset[str]] = frozenset({"reused"})
    toward_plain: ClassVar[dict[str, Toward]] = {
        "interval": "lower",
        "similarity": "raise",
        "lse_drift": "lower",
        "density": "raise",
        "dense_steps": "raise",
    }
    files: ClassVar[tuple[str, ...]] = ("calibration",)
    alone: ClassVar[frozenset[str]] = frozenset(_ALONE)
    brings: ClassVar[tuple[Brings, ...]] = (
        Brings("prior", "interval", unless=(1,)),
        replace(BRINGS_AN_ORDER, unless=(None, *BRINGS_AN_ORDER.unless)),
    )

    interval: Annotated[int, Field(ge=1)] = 3
    calibration: str | None = None
    similarity: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.85
    lse_drift: Annotated[float, Field(ge=0.0)] = 0.05
    memory_limit: Annotated[float, Field(gt=0.0)] | None = None
    density: Density | None = None
    dense_steps: Fraction | None = None
    block_size: BlockSize | None = None
    tiling: Tiling | None = None

    def resolved(self, family: Family, beside: frozenset[Slot] = frozenset()) -> Self:
        """The same with the settings for FlashBlock alone where it is; refuses them where no blocks are chosen."""
        if "attention" in beside:
            return self
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        if family.chunks is None:
            return type(self)(**{**_ALONE, **given})
        for name in sorted(self.alone & set(given)):
            raise AccelError(
                f"{self.method}: {name}={given[name]} chooses blocks, and in {family.title} it keeps the attention to "
                "earlier chunks whole: leave it out"
            )
        return self


@register(FlashBlockConfig)
class FlashBlock(FlashBlockForm):
    """Residual reuse on one pipeline; it is the prior of the sparse attention beside it, or of its own."""

    # Of fewer steps, too few are left between those that stay dense and those that refresh. Chosen by us, not measured.
    needs: ClassVar[Needs] = replace(SparseAttention.needs, attention=("self", "joint", "chunk"), steps=8)
    config: FlashBlockConfig

    def __init__(self, config: FlashBlockConfig, context: Context) -> None:
        super().__init__(config, context)
        self._own: MassSelection | None = None
        self._residuals = Residuals()
        # (denoiser, branch) for which there is memory.
        self._fitting: set[tuple[str, str]] = set()
        if config.interval > 1:
            context.handover.prior = self

    @classmethod
    def on(cls, config: FlashBlockConfig, context: Context) -> FlashBlockForm:
        return cls(config, context) if context.facts.family.chunks is None else ChunkFlashBlock(config, context)

    def install(self) -> list[Callable[[], None]]:
        self.load_calibration()
        if self.context.handover.attention:
            return [self._residuals.clear]
        self._residuals = Residuals(totals=True)
        self._own = MassSelection(self.config, self.context, self._residuals)
        return [*self._own.install(), self._residuals.clear]

    def start_run(self, num_steps: int) -> None:
        self._forget()
        self.require_same_weights()
        self.hold_to(num_steps=num_steps)
        if self._own is not None:
            self._own.start_run(num_steps)

    def end_run(self) -> None:
        self._forget()
        if self._own is not None:
            self._own.end_run()

    def _forget(self) -> None:
        super()._forget()
        self._residuals.clear()
        self._fitting.clear()

    def start_call(self, moment: Moment) -> None:
        self.demand_refresh(moment, self._residuals.oldest(moment))

    def expect(self, moment: Moment, query: Tensor, choice: BlockChoice) -> None:
        branch = (moment.denoiser, moment.branch)
        if moment.grid is None or choice.density == 1.0 or branch in self._fitting:
            return
        self.hold_to(**asdict(choice))
        self._fitting.add(branch)
        layers, branches = self.layers(moment), self.branches(moment, self._fitting)
        image = math.prod(moment.grid)
        need = needed(query, image, choice.density, choice.block_size, totals=self._residuals.totals)
        self.require_room(
            branches * layers * (need.outputs + need.beside),
            query.device,
            f"for {layers} attentions to {image:,} tokens it keeps {layers * need.outputs / 2**30:.3g} GiB of outputs "
            f"and {layers * need.beside / 2**30:.3g} GiB beside them {for_branches(branches)}; make the "
            "picture or film smaller, or use a sparse attention with a tail instead",
        )

    def reuse(self, call: SparseCall) -> tuple[Tensor, Tensor] | None:
        kept = self._residuals.at(call)
        if kept is None or self.context.board.compute_demanded(besides=self.name) is not None:
            return None
        counts = kept.chosen[1]
        if self._measuring is not None:
            return self._measured(call, kept, self._measuring)
        if self._calibration is not None:
            flags = self._calibration.heads(call.moment, call.layer)
            if flags is None or all(flags):
                return None
            if any(flags):
                heads, _ = self.heads_anew(self._calibration, (call.moment, call.layer), call.query.device)
                heads = heads if call.exchange is None else heads[call.exchange.heads(len(flags))]
                part, others = self._residuals.others(call, kept.chosen, heads)
                kept.renew(part, heads)
                counts = counts + others
        elif self.stale(call.moment, kept.step):
            return None
        self.context.recorder.event(self.name, "reused", call.moment, call.layer)
        self.context.recorder.figure(self.name, "exact", exact_share(call, counts))
        return self._residuals.reuse(call, kept), counts

    def _measured(self, call: SparseCall, kept: Residual, into: Measurements) -> tuple[Tensor, Tensor]:
        part, others = self._residuals.others(call, kept.chosen)
        heads = into.see(call.moment, call.layer, (kept.out, kept.lse), part)
        kept.renew(part, heads)
        self.context.recorder.event(self.name, "measured", call.moment, call.layer)
        out, _ = call.over(kept.chosen, prior=part[0], prior_lse=part[1])
        return out, kept.chosen[1] + others

    def refresh(self, call: SparseCall, chosen: Blocks) -> Tensor:
        out = self._residuals.refresh(call, chosen)
        self.context.recorder.event(self.name, "refreshed", call.moment, call.layer)
        self.context.recorder.held(self.name, self._residuals.nbytes)
        return out

    def report(self, record: RunRecord) -> dict[str, Any]:
        dense, refreshed, reused = (record.count(self.name, what) for what in ("dense", "refreshed", "reused"))
        exact = record.figures(self.name, "exact")
        total = dense + refreshed + reused
        mean = None if exact is None else exact.mean().item()
        return {
            # Of a sparse attention beside it, those that it did not leave dense.
            "attention_calls": total,
            "refreshed": refreshed,
            "reused": reused,
            "reused_fraction": reused / total if total else 0.0,
            "refreshed_by_step": record.count_by_step(self.name, "refreshed"),
            "reused_by_step": record.count_by_step(self.name, "reused"),
            # Of all key blocks, those of the text included, in the calls that reused.
            "density": mean,
            # Calls that refreshed count as 1; what choosing the blocks costs beside is not in it.
            "overall_density": None if not total else (reused * (mean or 0.0) + total - reused) / total,
            "rule": self.rule,
            "held_bytes": record.held_bytes[self.name],
        }

    def describe(self, record: RunRecord) -> str:
        report = self.report(record)
        if not report["reused"]:
            return f"reused nothing in {report['attention_calls']} attention calls, refreshed in {report['refreshed']}"
        return (
            f"reused in {report['reused']} of {report['attention_calls']} attention calls "
            f"({report['reused_fraction']:.1%}) at density {report['density']:.3f}, {report['overall_density']:.3f} "
            f"over all of them; refreshed in {report['refreshed']} by {report['rule']}, "
            f"holding {report['held_bytes'] / 1e6:.1f} MB at most"
        )

    def idle_reason(self, record: RunRecord) -> str | None:
        config = self.config
        acted = record.count(self.name, "reused") or record.count(self.name, "measured")
        if acted or config.interval == 1 or config.density == 1.0:
            return None
        if record.count(self.name, "refreshed") and self._calibration is not None:
            return f"every call was due for a refresh by {self.rule}"
        if record.count(self.name, "refreshed"):
            return f"every call was due for a refresh at interval={config.interval}: use more steps, or raise it"
        if self._own is None:
            return "the attention beside it made no call sparse"
        return self._own.idle_reason(record)
