"""AdaSpa, adaptive block-sparse attention (arXiv 2502.21079): blocks found by a precise search, kept for many steps.

Patterns of attention depend on prompt, layer and head, but hardly change from step to step. So the exact attention mass
of every block is measured at a few steps, each query block keeps the key blocks with most of it, and heads whose mass
is concentrated give part of their budget to heads whose mass is not.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field
from torch import Tensor

from accel.errors import AccelError
from accel.kernels.selection import head_budgets, head_recalls, kept_number, top_blocks
from accel.methods.base import Context, Keyword, MethodConfig, Toward, register
from accel.methods.block_search import BlockSearch
from accel.methods.needs import Brings, Slot
from accel.methods.sparse_attention import (
    BRINGS_A_TAIL,
    BRINGS_AN_ORDER,
    BlockSize,
    Density,
    Fraction,
    Places,
    SparseAttention,
    Tiling,
)
from accel.methods.sparse_call import Blocks, SparseCall, Tail, highest_blocks
from accel.pipelines.facts import Family
from accel.runtime.clock import Moment


class AdaSpaConfig(MethodConfig):
    """Settings of adaptive block-sparse attention.

    Attributes:
        density: Fraction of the image's key blocks that a query block attends, in the mean over heads; text comes on
            top. 1 gives the bits of the plain pipeline. The paper uses 0.2.
        search_steps: Where in the run the search looks, as fractions of its steps; the steps before the first are
            dense. The paper's steps 10 and 30 of 50 are 0.2 and 0.6.
        head_adaptive: Whether heads share their budgets (section 3.4 of the paper).
        recall: Share of the mass from which a head counts as concentrated. None is the paper's 0.8. Without
            head_adaptive it is refused.
        tail: What the other blocks become: "none" (dropped, as published), or "zeroth" or "hybrid" as in PISA, which is
            ours; blocks are then chosen by what the tail gets wrong instead of by their mass.
        block_size: Tokens of a block.
        tiling: When tokens are ordered so that a block is a compact patch of the picture or of the film: "call", for
            every attention call; "forward", once per call of the transformer, before its first block, so that hooks on
            blocks see that order too; "none", not at all. The paper does not say; ours.
        min_tokens: Image tokens from which on attention is sparse; with fewer every call stays dense.
    """

    method: ClassVar[str] = "adaspa"
    keyword: ClassVar[Keyword] = "attention"
    levers: ClassVar[dict[str, tuple[str, ...]]] = {
        "dense": ("search_steps",),
        "sparse": ("density", "search_steps"),
        "searched": ("search_steps",),
    }
    approximate: ClassVar[frozenset[str]] = frozenset({"sparse"})
    toward_plain: ClassVar[dict[str, Toward]] = {"density": "raise"}
    brings: ClassVar[tuple[Brings, ...]] = (BRINGS_A_TAIL, BRINGS_AN_ORDER)

    density: Density = 0.2
    search_steps: Places = (0.2, 0.6)
    head_adaptive: bool = True
    recall: Fraction | None = None
    tail: Tail = "none"
    block_size: BlockSize = 64
    tiling: Tiling = "call"
    min_tokens: Annotated[int, Field(ge=0)] = 0

    def resolved(self, family: Family, beside: frozenset[Slot] = frozenset()) -> Self:
        """The same with the published recall where nothing is said; refuses one that nothing would read."""
        if self.head_adaptive:
            return self if self.recall is not None else self.model_copy(update={"recall": _RECALL})
        if self.recall is not None:
            raise AccelError(
                f"adaspa: recall={self.recall} is read by head_adaptive=True alone: leave it out or switch that on"
            )
        return self


_RECALL = 0.8


@register(AdaSpaConfig)
class AdaSpa(SparseAttention):
    """Adaptive block-sparse attention on one pipeline."""

    config: Any

    def __init__(self, config: AdaSpaConfig, context: Context) -> None:
        super().__init__(config, context)
        self._search = BlockSearch(config.search_steps, self.note_search)

    def start_run(self, num_steps: int) -> None:
        super().start_run(num_steps)
        self._search.start_run(num_steps)

    @property
    def min_tokens(self) -> int:
        return self.config.min_tokens

    def start_call(self, moment: Moment) -> None:
        if self.config.density < 1.0 and self._search.due(moment):
            self.context.board.demand_compute(self.config.method, "a search is due")

    def end_run(self) -> None:
        super().end_run()
        self._search.clear()

    def scheduled_dense(self, moment: Moment, depth: int) -> bool:
        return moment.step < self._search.first or self.config.density == 1.0

    def why_all_dense(self, num_steps: int) -> str:
        places = self.config.search_steps
        return f"with search_steps={places} none of {num_steps} steps comes after the first search: lower it"

    def sparse(self, call: SparseCall) -> tuple[Tensor, Tensor | None]:
        tail = self.config.tail
        statistics = None if tail == "none" else call.statistics(first_order=tail == "hybrid")
        out, chosen = self._search.attend(call, self._choose, statistics)
        if out is not None:
            return out, None
        return call.attend(chosen, tail, statistics), chosen[1]

    def _choose(self, call: SparseCall, scores: Tensor, mass: Tensor) -> Blocks:
        if not self.config.head_adaptive:
            return highest_blocks(call, scores, self.config.density)
        keep = self._budgets(call, mass[..., call.image]) + call.text_blocks
        # No head gets more than half as much again.
        widest = kept_number(self.config.density, call.image.stop - call.image.start) * 3 // 2
        widest += call.text.stop - call.text.start
        return top_blocks(scores, keep, always=call.always, sizes=call.sizes, width=widest)

    def _budgets(self, call: SparseCall, mass: Tensor) -> Tensor:
        """Blocks of the image for each head, (B, H); heads give to each other wherever they are computed."""
        density, level, exchange = self.config.density, self.config.recall, call.exchange
        if exchange is None:
            return head_budgets(mass, density, level)
        recalls = exchange.of_all_heads(head_recalls(mass, density))
        return head_budgets(mass, density, level, recalls=recalls)[:, exchange.heads(recalls.shape[1])]
