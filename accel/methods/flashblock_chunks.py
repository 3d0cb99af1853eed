"""FlashBlock's own setting (arXiv 2602.05305): films that are made chunk by chunk behind a frozen past.

All steps of a chunk attend to the same keys of earlier chunks, and what they find there changes slowly. It is computed
at a chunk's first step, with its log-sum-exp, and on later steps the online softmax over the chunk's own keys starts
from it; so such a step costs a chunk's attention to itself alone. Reuse is exact where the queries did not change. A
head is computed anew by the interval, or where a calibration says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from accel.kernels.block_attention import block_attention, dense_attention
from accel.kernels.blocks import number_of_blocks
from accel.methods.base import Context
from accel.methods.flashblock_form import FlashBlockForm, for_branches
from accel.methods.needs import FAST_DEVICES, Needs
from accel.methods.served_attention import ServedAttention
from accel.methods.sparse_call import NotInBlocks, of_one_dtype
from accel.pipelines.attention import AttentionCall, External
from accel.pipelines.sites import BlockSite
from accel.runtime.clock import Moment
from accel.runtime.recorder import RunRecord
from accel.runtime.state import BranchState

_BLOCK = 64


@dataclass
class Past:
    """One layer's attention over the chunks before.

    Attributes:
        out: (B, S, H, D) in the dtype of the query, for the reasons that `accel.methods.residual.Residual` gives.
        lse: float32 (B, H, S), its log-sum-exp.
        tokens: of the chunks before.
        step: when all heads were computed.
    """

    out: Tensor
    lse: Tensor
    tokens: int
    step: int

    def fits(self, query: Tensor, tokens: int) -> bool:
        """Whether it is what such a query would find behind so many tokens."""
        out = self.out
        same = out.shape == query.shape and out.dtype == query.dtype and out.device == query.device
        return same and self.tokens == tokens

    @property
    def nbytes(self) -> int:
        return self.out.nbytes + self.lse.nbytes


class ChunkFlashBlock(FlashBlockForm):
    """FlashBlock on a pipeline that generates chunk by chunk."""

    # The rest of what FlashBlock needs is refused before either form is made.
    needs: ClassVar[Needs] = Needs(devices=FAST_DEVICES)

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self._served: ServedAttention | None = None
        self._state: BranchState[dict[int, Past]] = BranchState(dict)
        self._branches: set[tuple[str, str]] = set()

    def install(self) -> list[Callable[[], None]]:
        self.load_calibration()
        if self.config.interval == 1:
            return []
        self._served = ServedAttention(self.context, self._attend)
        return [*self._served.install(), self._state.clear]

    def start_run(self, num_steps: int) -> None:
        self._forget()
        self.require_same_weights()
        self.hold_to(num_steps=num_steps, **dict.fromkeys(("chosen_by", "density", "block_size", "tiling")))
        if self._served is not None:
            self._served.start_run()

    def end_run(self) -> None:
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._state.clear()
        self._branches.clear()

    def start_call(self, moment: Moment) -> None:
        kept = self._state.at(moment).values()
        self.demand_refresh(moment, min((past.step for past in kept), default=None))

    def _attend(
        self, moment: Moment, site: BlockSite, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall
    ) -> Tensor:
        record, layer = self.context.recorder, site.index
        external = call.external
        if external is None or external.tokens == 0:
            record.event(self.name, "alone", moment, layer)
            return call.dense(query, key, value)
        if self.context.board.dense_demanded(site.depth):
            record.event(self.name, "dense", moment, layer)
            return call.dense(query, key, value)
        try:
            if call.spread:
                raise NotInBlocks("context parallelism spreads the tokens over devices, and a chunk needs all of them")
            tensors = of_one_dtype((query, key, value))
        except NotInBlocks as reason:
            record.event(self.name, "dense", moment, layer)
            record.fallback(self.name, str(reason))
            return call.dense(query, key, value)
        # What autocast asks for is done by now: scores and sums are in float32 as without it.
        with torch.autocast(query.device.type, enabled=False):
            past, what = self._past(moment, layer, tensors[0], tensors[1].shape[1], external, call.scale)
            if past is not None:
                out = _go_on(*tensors, past, call.scale)
        record.event(self.name, what, moment, layer)
        return call.dense(query, key, value) if past is None else out

    def _past(
        self, moment: Moment, layer: int, query: Tensor, own: int, external: External, scale: float | None
    ) -> tuple[Past | None, str]:
        """What the chunk's `own` keys go on from, and how it came about; None to leave the call to diffusers."""
        layers, heads = self._state.at(moment), query.shape[2]
        past = layers.get(layer)
        if past is None or not past.fits(query, external.tokens):
            past, anew = None, [True] * heads
        elif self._measuring is not None:
            fresh = Past(*_over(query, external, scale), external.tokens, moment.step)
            moved = self._measuring.see(moment, layer, (past.out, past.lse), (fresh.out, fresh.lse))
            # Kept is what a run with this calibration would keep.
            past.out = torch.where(moved[:, None], fresh.out, past.out)
            past.lse = torch.where(moved[:, None], fresh.lse, past.lse)
            return fresh, "measured"
        else:
            anew = self._which_anew(moment, layer, past, heads)
        if past is None or all(anew):
            layers.pop(layer, None)  # Two of them at once would be more than was checked for.
            if moment.step >= moment.num_steps - 1:
                return None, "dense"  # No step is left to reuse it.
            self._check_room(moment, query)
            layers[layer] = past = Past(*_over(query, external, scale), external.tokens, moment.step)
            held = sum(one.nbytes for branch in self._state.values() for one in branch.values())
            self.context.recorder.held(self.name, held)
            return past, "refreshed"
        if any(anew) and self._calibration is not None:
            _, some = self.heads_anew(self._calibration, (moment, layer), query.device)
            past.out[:, :, some], past.lse[:, some] = _over(query, external, scale, some)
        share = sum(anew) / heads
        computed = (own + share * external.tokens) / (own + external.tokens)
        self.context.recorder.figure(self.name, "heads", torch.tensor([share], device="cpu"))
        self.context.recorder.figure(self.name, "keys", torch.tensor([computed], device="cpu"))
        return past, "reused"

    def _which_anew(self, moment: Moment, layer: int, past: Past, heads: int) -> list[bool]:
        if self._calibration is None:
            return [self.stale(moment, past.step)] * heads
        # What was never measured is not trusted.
        return self._calibration.heads(moment, layer) or [True] * heads

    def _check_room(self, moment: Moment, query: Tensor) -> None:
        self._branches.add((moment.denoiser, moment.branch))
        layers, branches = self.layers(moment), self.branches(moment, self._branches)
        batch, tokens, heads, _ = query.shape
        each = query.numel() * query.element_size() + 4 * batch * heads * tokens
        self.require_room(
            branches * layers * each,
            query.device,
            f"for {layers} attentions of {tokens:,} tokens it keeps {layers * each / 2**30:.3g} GiB of their attention "
            f"to earlier chunks {for_branches(branches)}; make the chunks or the picture smaller",
        )

    def report(self, record: RunRecord) -> dict[str, Any]:
        kinds = ("alone", "dense", "refreshed", "reused", "measured")
        count = {what: record.count(self.name, what) for what in kinds}
        total, reused = sum(count.values()), count["reused"]
        keys, heads = (_mean(record.figures(self.name, figure)) for figure in ("keys", "heads"))
        return {
            "attention_calls": total,
            # Of a film's first chunk, which attends to itself alone.
            "without_past": count["alone"],
            # All of it computed as in the plain pipeline: no later step could have reused it, or it was asked to be.
            "dense": count["dense"],
            "refreshed": count["refreshed"],
            "reused": reused,
            "reused_fraction": reused / total if total else 0.0,
            "refreshed_by_step": record.count_by_step(self.name, "refreshed"),
            "reused_by_step": record.count_by_step(self.name, "reused"),
            # Of the heads in calls that reused, those that a calibration had computed anew.
            "heads_refreshed": heads,
            # Of all keys, those attended to in calls that reused; their mean.
            "density": keys,
            # The same over all calls, the others count as 1.
            "overall_density": None if not total else (reused * (keys or 0.0) + total - reused) / total,
            "rule": self.rule,
            "held_bytes": record.held_bytes[self.name],
        }

    def describe(self, record: RunRecord) -> str:
        report = self.report(record)
        rest = f"{report['dense']} were dense, {report['without_past']} had no earlier chunk"
        if not report["reused"]:
            total, refreshed = report["attention_calls"], report["refreshed"]
            return f"reused nothing in {total} attention calls; {refreshed} refreshed, {rest}"
        anew = f", {report['heads_refreshed']:.1%} of their heads anew" if report["heads_refreshed"] else ""
        return (
            f"reused the attention to earlier chunks in {report['reused']} of {report['attention_calls']} attention "
            f"calls ({report['reused_fraction']:.1%}{anew}), which attended to {report['density']:.3f} of their keys, "
            f"{report['overall_density']:.3f} over all calls; {report['refreshed']} refreshed by {report['rule']}, "
            f"{rest}; holding {report['held_bytes'] / 1e6:.1f} MB at most"
        )

    def idle_reason(self, record: RunRecord) -> str | None:
        refreshed, dense, reused, measured = (
            record.count(self.name, what) for what in ("refreshed", "dense", "reused", "measured")
        )
        if reused or measured or self.config.interval == 1:
            return None
        reasons = [reason for method, reason in record.fallbacks if method == self.name]
        if reasons:
            return "; ".join(reasons)
        if not refreshed and not dense:
            return "no call attended to an earlier chunk: make a film of two chunks or more"
        if self._calibration is not None:
            return f"every call was due for a refresh by {self.rule}"
        return (
            f"every call was due for a refresh at interval={self.config.interval} and {record.num_steps} steps in a "
            "chunk: use more steps, or raise it"
        )


def _over(query: Tensor, external: External, scale: float | None, heads: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the queries over the chunks before, of all heads or of some, int64 (H,)."""
    key, value = (tensor.to(query.dtype) for tensor in external.read())
    if heads is not None:
        query, key, value = (tensor[:, :, heads] for tensor in (query, key, value))
    return dense_attention(query, key, value, block_size=_BLOCK, scale=scale)


def _go_on(query: Tensor, key: Tensor, value: Tensor, past: Past, scale: float | None) -> Tensor:
    """Attention over the chunk's own keys, all of them, in a softmax that starts from the past."""
    number = number_of_blocks(key.shape[1], _BLOCK)
    rows = (query.shape[0], query.shape[2], number_of_blocks(query.shape[1], _BLOCK))
    blocks = torch.arange(number, dtype=torch.int32, device=query.device).expand(*rows, -1)
    counts = torch.full((1, 1, 1), number, dtype=torch.int32, device=query.device).expand(rows)
    return block_attention(
        query, key, value, blocks, counts, block_size=_BLOCK, prior=past.out, prior_lse=past.lse, scale=scale
    )[0]


def _mean(figures: Tensor | None) -> float | None:
    return None if figures is None else figures.mean().item()
