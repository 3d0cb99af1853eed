"""What the sparse attentions share: where they stand, which calls they leave to diffusers, and the record.

A method decides for each call which key blocks every query block attends exactly; here is everything around that.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from accel.kernels.arrangement import let_go_of_arrangements
from accel.kernels.blocks import LARGEST_HEAD
from accel.methods.base import Context, Method
from accel.methods.block_sizes import BlockSizes
from accel.methods.handover import BlockChoice
from accel.methods.needs import FAST_DEVICES, Brings, Needs, Slot
from accel.methods.served_attention import ServedAttention
from accel.methods.sparse_call import (
    DTYPES,
    FEWEST_BLOCKS,
    NotInBlocks,
    SparseCall,
    exact_share,
    put_into_blocks,
    require_choice,
    text_lengths,
)
from accel.methods.token_order import ForwardOrder, dense_in_the_models_order
from accel.pipelines.attention import AttentionCall, HeadExchange
from accel.pipelines.context_parallel import why_not_by_heads
from accel.pipelines.sites import BlockSite
from accel.runtime.clock import Moment
from accel.runtime.recorder import RunRecord

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Density = Annotated[float, Field(gt=0.0, le=1.0)]
BlockSize = Literal[32, 64, 128]
# Whether blocks are made of neighbouring tokens, and when the tokens are ordered for it.
Tiling = Literal["call", "forward", "none"]
BRINGS_A_TAIL = Brings("tail", "tail", unless=("none",))
BRINGS_AN_ORDER = Brings("token order", "tiling", unless=("call", "none"))
# Fractions of a run at which something begins; a file has a list for them.
Places = Annotated[tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...], Field(min_length=1, strict=False)]


@dataclass(frozen=True)
class _Padded:
    """What was found of a mask over so many tokens, `words` of which are text: how many text tokens of each sample it
    leaves, or why that cannot be told."""

    mask: Any
    tokens: int
    words: int | None
    found: Tensor | str

    def is_of(self, mask: Any, call: AttentionCall, query: Tensor) -> bool:
        """Whether it holds for another call."""
        return self.mask is mask and (self.tokens, self.words) == (query.shape[1], call.text_length)


class SparseAttention(Method):
    """A sparse attention on one pipeline; a subclass says which blocks are exact."""

    slot: ClassVar[Slot] = "attention"
    needs: ClassVar[Needs] = Needs(
        attention=("self", "joint"),
        head_sizes=range(8, LARGEST_HEAD + 1, 8),
        dtypes=tuple(str(dtype).removeprefix("torch.") for dtype in DTYPES),
        devices=FAST_DEVICES,
        token_blocks=FEWEST_BLOCKS,
    )

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        context.handover.attention = True
        self._padded: _Padded | None = None
        self._sizes = BlockSizes()
        self._choice = BlockChoice(config.method, config.density, config.block_size, config.tiling)
        self._exchange: tuple[Moment, HeadExchange] | None = None
        self._served: ServedAttention | None = None

    @abstractmethod
    def scheduled_dense(self, moment: Moment, depth: int) -> bool:
        """Whether the configuration leaves a block at this depth to diffusers."""

    @abstractmethod
    def sparse(self, call: SparseCall) -> tuple[Tensor, Tensor | None]:
        """The attention's output in the call's order, and the counts (B, H, NQ) of exact blocks; None where a search
        made the call dense."""

    @abstractmethod
    def why_all_dense(self, num_steps: int) -> str:
        """Which setting leaves nothing to it, where nothing else is the reason, and what to do."""

    def note_call(self, what: str, moment: Moment, layer: int) -> None:
        """Counts a call that was not left to diffusers, by what was done with it."""
        self.context.recorder.event(self.config.method, what, moment, layer)

    def note_search(self, held_bytes: int) -> None:
        """Counts a search, after which so much memory is held."""
        self.context.recorder.figure(self.config.method, "search", torch.ones(1, device="cpu"))
        self.context.recorder.held(self.config.method, held_bytes)

    def install(self) -> list[Callable[[], None]]:
        self._served = ServedAttention(self.context, self._attend)
        undo = []
        if self.config.tiling == "forward":
            name, size = self.config.method, self.config.block_size
            undo += ForwardOrder(name, self.context, size, self._wanted).install()
        return [*undo, *self._served.install(), let_go_of_arrangements]

    def start_run(self, num_steps: int) -> None:
        if self._served is not None:
            self._served.start_run()

    def end_run(self) -> None:
        self._padded = self._exchange = None
        self._sizes.clear()

    def _wanted(self, moment: Moment, depth: int) -> bool:
        """Whether a block at this depth is to be sparse."""
        return not (
            self.scheduled_dense(moment, depth)
            or self.context.board.dense_demanded(depth)
            or self._too_few(moment.grid)
        )

    @property
    def min_tokens(self) -> int:
        """Image tokens from which on calls are sparse."""
        return 0

    def _too_few(self, grid: tuple[int, int, int] | None) -> bool:
        return grid is not None and math.prod(grid) < self.min_tokens

    def _attend(
        self, moment: Moment, site: BlockSite, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall
    ) -> Tensor:
        record, name = self.context.recorder, self.config.method
        layer = site.index if call.layer is None else call.layer
        prior, wanted = self.context.handover.prior, self._wanted(moment, site.depth)
        exchange = self._exchange_of(moment, query, call) if wanted or prior is not None else None
        if prior is not None:
            whole = query if exchange is None else exchange.like(query)
            prior.expect(moment, whole, self._choice)
        if not wanted:
            record.event(name, "dense", moment, layer)
            return self._dense(query, key, value, call)
        config, order = self.config, self.context.board.order
        try:
            require_choice(moment, call, query.shape[2], config.density, config.block_size)
            arrangement, sparse_call = put_into_blocks(
                moment,
                layer,
                (query, key, value),
                call,
                self._text_lengths(call, query, exchange),
                config.block_size,
                config.tiling != "none" and order is None,
                exchange,
                self._sizes,
            )
        except NotInBlocks as reason:
            record.event(name, "dense", moment, layer)
            record.fallback(name, str(reason))
            return self._dense(query, key, value, call)
        sparse_call = replace(sparse_call, prior=prior)
        # What autocast asks for is done by now: scores and sums are in float32 as without it.
        with torch.autocast(query.device.type, enabled=False):
            reused = None if prior is None else prior.reuse(sparse_call)
            if reused is None:
                out, counts = self.sparse(sparse_call)
                # With a prior, blocks chosen just now mean that all the others were computed too.
                what = "searched" if counts is None else "sparse" if prior is None else "refreshed"
            else:
                out, counts, what = sparse_call.beside_text(reused[0]), reused[1], "sparse"
        self.note_call(what, moment, layer)
        if counts is not None and what == "sparse":
            record.figure(name, "density", exact_share(sparse_call, counts), moment, layer)
        out = arrangement.restore(out)
        return out if exchange is None else exchange.scatter(out)

    def _dense(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        order = self.context.board.order
        if order is None:
            return call.dense(query, key, value)
        return dense_in_the_models_order(order, query, key, value, call)

    def _exchange_of(self, moment: Moment, query: Tensor, call: AttentionCall) -> HeadExchange | None:
        """How a call gets all tokens of some heads; None where it has them, or cannot have them."""
        if not call.spread or moment.grid is None or why_not_by_heads(call.parallel, query.shape[2]) is not None:
            return None
        # Made once for all blocks, because the processes may have to wait for each other.
        if self._exchange is None or self._exchange[0] is not moment or not self._exchange[1].suits(call, query):
            self._exchange = moment, HeadExchange.of(call, query, math.prod(moment.grid))
        return self._exchange[1]

    def _text_lengths(self, call: AttentionCall, query: Tensor, exchange: HeadExchange | None) -> Tensor | None:
        """What the mask leaves of the texts; asked once for all blocks, because it waits for the device."""
        masks = (call.text_mask, call.counting, call.mask)
        if all(mask is None for mask in masks):
            return None
        # Some processors make a mask of their own in every block, out of what all of them are given.
        told = next(mask for mask in (call.given_mask, *masks) if mask is not None)
        known = self._padded
        if known is None or not known.is_of(told, call, query):
            tokens, words = query.shape[1], call.text_length
            if exchange is not None:
                call, query = exchange.call(call), exchange.like(query)
            found: Tensor | str
            try:
                found = text_lengths(call, query.shape[1])
            except NotInBlocks as reason:
                found = str(reason)
            known = self._padded = _Padded(told, tokens, words, found)
        if isinstance(known.found, str):
            raise NotInBlocks(known.found)
        return known.found

    def report(self, record: RunRecord) -> dict[str, Any]:
        name = self.config.method
        density = record.figures(name, "density")
        sparse, searched, refreshed, total = (
            record.count(name, what) for what in ("sparse", "searched", "refreshed", None)
        )
        searches, tiled = (record.figures(name, figure) for figure in ("search", "tiled_forward"))
        mean = None if density is None else density.mean().item()
        return {
            "attention_calls": total,
            "sparse": sparse,
            "searched": searched,
            # Calls in which a prior took the other blocks up, so that they were dense in effect and in cost.
            "refreshed": refreshed,
            "searches": 0 if searches is None else len(searches),
            # Of all key blocks, those of the text included, in the calls that were sparse.
            "density": mean,
            # Dense calls count as 1, also those that searched; what a search costs beside is not in it.
            "overall_density": None if not total else (sparse * (mean or 0.0) + total - sparse) / total,
            # Calls of the denoiser whose tokens were tiled once for all blocks.
            "tiled_forwards": 0 if tiled is None else len(tiled),
            "sparse_by_step": record.count_by_step(name, "sparse"),
            "held_bytes": record.held_bytes[name],
        }

    def describe(self, record: RunRecord) -> str:
        report = self.report(record)
        if not report["sparse"]:
            why = ""
            if record.grid is not None and self._too_few(record.grid):
                why = f": {math.prod(record.grid):,} tokens, and min_tokens={self.min_tokens}"
            return f"all {report['attention_calls']} attention calls were dense{why}"
        searched = f"; {report['searches']} searches, {report['searched']} of them dense" if report["searches"] else ""
        tiled = f"; tokens tiled once in {report['tiled_forwards']} forwards" if report["tiled_forwards"] else ""
        searched += f"; {report['refreshed']} dense for a prior" if report["refreshed"] else ""
        held = f", holding {report['held_bytes'] / 1e6:.1f} MB at most" if report["held_bytes"] else ""
        return (
            f"{report['sparse']} of {report['attention_calls']} attention calls sparse at density "
            f"{report['density']:.3f} of all key blocks, {report['overall_density']:.3f} over all calls"
            f"{searched}{tiled}{held}"
        )

    def idle_reason(self, record: RunRecord) -> str | None:
        name = self.config.method
        if record.count(name, "sparse") or self.config.density == 1.0 or self._too_few(record.grid):
            return None  # With too few tokens it was not asked to, which `describe` says.
        if not record.count(name):
            return "none of the attentions that it stands in for was called"
        reasons = [reason for method, reason in record.fallbacks if method == name]
        return "; ".join(reasons) or self.why_all_dense(record.num_steps)
