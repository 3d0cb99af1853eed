"""PISA, piecewise sparse attention (arXiv 2602.01077): exact where it matters, a Taylor piece for every other block.

Nothing is dropped: a block that is not attended exactly enters the same softmax as one token of its mean key and value
and the block's weight, and in the hybrid form with a first-order term that all such blocks share (equations in
`accel.kernels.block_attention`). Which blocks are exact is decided anew at every call from block means, or, as ours, by
AdaSpa's precise search, scored by what the tail gets wrong.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from statistics import NormalDist
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from accel.errors import AccelError
from accel.kernels.block_statistics import BlockStatistics
from accel.kernels.selection import threshold_blocks
from accel.methods.base import Context, Keyword, MethodConfig, Toward, register, steps_in
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
from accel.methods.sparse_call import Blocks, SparseCall, Tail, block_scores, highest_blocks
from accel.pipelines.facts import Family
from accel.runtime.clock import Moment

Router = Literal["mean", "covariance", "threshold", "search"]


class PISAConfig(MethodConfig):
    """Settings of piecewise sparse attention.

    None means the value that was published for the family, or else that of Wan for videos and of FLUX.1 for images.

    Attributes:
        density: Fraction of the image's key blocks that each query block attends exactly, text on top; None is 0.125
            for videos and 0.15 for images, but the published 0.3 for Stable Diffusion 3. 1 gives the bits of the plain
            pipeline.
        tail: What the other blocks become: "hybrid" (the published form), "zeroth" (means alone), "none" (dropped).
        router: How the exact blocks are chosen: "mean", "covariance", "threshold" or "search"; None is the published
            "mean" for videos and "covariance" for images. "mean" takes block means, "covariance" the spread inside a
            block too. "threshold" takes the blocks that stand out by the deviation of their row's scores (Sol-Attn,
            arXiv 2607.24027); the density is then a wish, met where scores are normally distributed. "search" is
            AdaSpa's search (arXiv 2502.21079) by the error of the tail, and ours.
        block_size: Tokens of a block.
        dense_steps: Fraction of the run's steps, from the start, that stay dense; None is the published 0.2 for
            HunyuanVideo, none for images, and for other videos 0.25, which is chosen by us between the published 0.3 of
            Wan 1.3B and 0.2 of Wan 14B.
        dense_layers: Blocks of the transformer, from the first, that stay dense; None is 1 for videos and 4 for
            images. The blocks of VACE that make hints count as the block that their hint is added to.
        search_steps: Where in the run the router "search" looks, as fractions of its steps; steps before the first are
            dense. None is 0.25 and 0.6. With another router they are refused.
        tiling: When tokens are ordered so that a block is a compact patch of the picture or of the film: "call", for
            every attention call; "forward", once per call of the transformer, before its first block, so that hooks on
            blocks see that order too; "none", not at all.
        min_tokens: Image tokens from which on attention is sparse; with fewer every call stays dense.
    """

    method: ClassVar[str] = "pisa"
    keyword: ClassVar[Keyword] = "attention"
    levers: ClassVar[dict[str, tuple[str, ...]]] = {
        "dense": ("dense_steps", "dense_layers"),
        "sparse": ("density", "dense_steps", "dense_layers"),
        "searched": ("search_steps",),
    }
    approximate: ClassVar[frozenset[str]] = frozenset({"sparse"})
    toward_plain: ClassVar[dict[str, Toward]] = {"density": "raise", "dense_steps": "raise", "dense_layers": "raise"}
    brings: ClassVar[tuple[Brings, ...]] = (BRINGS_A_TAIL, BRINGS_AN_ORDER)

    density: Density | None = None
    tail: Tail = "hybrid"
    router: Router | None = None
    block_size: BlockSize = 64
    dense_steps: Fraction | None = None
    dense_layers: Annotated[int, Field(ge=0)] | None = None
    search_steps: Places | None = None
    tiling: Tiling = "call"
    min_tokens: Annotated[int, Field(ge=0)] = 0

    def resolved(self, family: Family, beside: frozenset[Slot] = frozenset()) -> Self:
        """The same with the family's values where nothing is said; refuses search_steps where no search would look."""
        usual = _VIDEO if family.makes_videos else _IMAGE
        published = {} if family.published is None else asdict(family.published)
        own = {name: published[name] for name in usual if published.get(name) is not None}
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        settings = {**usual, **own, **given}
        if settings["router"] == "search":
            settings.setdefault("search_steps", _SEARCH_STEPS)
        elif self.search_steps is not None:
            raise AccelError(
                f"pisa: search_steps={self.search_steps} is read by router='search' alone, and the router is "
                f"{settings['router']!r}: leave it out or take router='search'"
            )
        return type(self)(**settings)


_SEARCH_STEPS = (0.25, 0.6)
# Published for Wan, but for the dense steps, and for FLUX.1.
_VIDEO = {"density": 0.125, "router": "mean", "dense_steps": 0.25, "dense_layers": 1}
_IMAGE = {"density": 0.15, "router": "covariance", "dense_steps": 0.0, "dense_layers": 4}


@register(PISAConfig)
class PISA(SparseAttention):
    """Piecewise sparse attention on one pipeline."""

    config: Any

    def __init__(self, config: PISAConfig, context: Context) -> None:
        super().__init__(config, context)
        self._search = BlockSearch(self.config.search_steps or (), self.note_search)

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
        config = self.config
        # Without the router "search" nothing is searched, and the first search is at step 0.
        early = max(steps_in(config.dense_steps, moment.num_steps), self._search.first)
        return moment.step < early or depth < config.dense_layers or config.density == 1.0

    def why_all_dense(self, num_steps: int) -> str:
        config = self.config
        if steps_in(config.dense_steps, num_steps) >= num_steps:
            return f"dense_steps={config.dense_steps} leaves it none of {num_steps} steps: lower it"
        if config.router == "search" and self._search.first >= num_steps - 1:
            return f"with search_steps={config.search_steps} none of {num_steps} steps comes after the first search"
        return f"dense_layers={config.dense_layers} leaves it none of the transformer's blocks: lower it"

    def sparse(self, call: SparseCall) -> tuple[Tensor, Tensor | None]:
        config, statistics = self.config, None
        if config.tail != "none" or config.router != "search":
            statistics = call.statistics(first_order=config.tail == "hybrid", spread=config.router == "covariance")
        if statistics is None or config.router == "search":
            out, chosen = self._search.attend(call, self._highest, statistics)
            if out is not None:
                return out, None
        else:
            chosen = self._route(call, statistics)
        return call.attend(chosen, config.tail, statistics), chosen[1]

    def _route(self, call: SparseCall, statistics: BlockStatistics) -> Blocks:
        """Block means decide (section 3.2 of the paper); text blocks are always in."""
        scores = block_scores(call, statistics.mean_key)
        if self.config.router == "threshold":
            return threshold_blocks(
                scores,
                deviations(self.config.density),
                always=call.always,
                sizes=call.sizes,
                among=None if call.always is None else ~call.always,
            )
        if self.config.router == "covariance" and statistics.spread is not None:
            spread = (statistics.spread + 1e-5).log()
            scores = scores + spread.repeat_interleave(scores.shape[1] // spread.shape[1], 1)[:, :, None]
        return highest_blocks(call, scores, self.config.density)

    def _highest(self, call: SparseCall, scores: Tensor, mass: Tensor) -> Blocks:
        return highest_blocks(call, scores, self.config.density)


def deviations(density: float) -> float:
    """The threshold in standard deviations above the mean that keeps this share of normally distributed scores."""
    return -NormalDist().inv_cdf(density) if density < 1 else -math.inf
