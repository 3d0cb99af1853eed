"""Attention over the blocks that are not exact, kept from step to step (FlashBlock, arXiv 2602.05305, section 2.4).

A sparse attention drops what is not among its exact blocks. Here that part is computed once, with the log-sum-exp of
its scores, and on the following steps the online softmax over the exact blocks starts from it. Both parts together are
all blocks as long as the exact ones stay the same, so that a choice holds as long as what was computed beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from accel.kernels.blocks import number_of_blocks
from accel.kernels.selection import kept_number, other_blocks
from accel.methods.block_sizes import same_sizes
from accel.methods.sparse_call import Blocks, SparseCall
from accel.runtime.clock import Moment
from accel.runtime.state import BranchState

# Output and log-sum-exp.
Part = tuple[Tensor, Tensor]


@dataclass
class Residual:
    """One layer's part that is not exact.

    Attributes:
        chosen: the exact blocks, which it is the complement of.
        out: (B, S_image, H, D) in the dtype of the query, the attention over all other blocks. In bfloat16 its rounding
            moves the merged output by 1.6e-3 of itself, as rounding the result to bfloat16 does anyway, and in float16
            by 2e-4 (measured with 4,096 tokens); float32, which the kernels take too, would hold twice the memory.
        lse: float32 (B, H, S_image), its log-sum-exp; minus infinity where there is no other block.
        total: as lse, of all blocks; None where nobody asks for it.
        step: when it was computed.
    """

    chosen: Blocks
    out: Tensor
    lse: Tensor
    total: Tensor | None
    step: int
    sizes: Tensor
    image: slice

    def fits(self, call: SparseCall) -> bool:
        """Whether it is the complement in a call of this shape: a callback may change the text within a run."""
        query = call.image_query
        same = self.out.shape == query.shape and self.out.dtype == query.dtype and self.out.device == query.device
        return same and self.image == call.image and same_sizes(self.sizes, call.sizes)

    def renew(self, part: Part, heads: Tensor) -> None:
        """Takes over some heads, bool (H,), of a part that was computed afresh."""
        self.out = torch.where(heads[:, None], part[0], self.out)
        self.lse = torch.where(heads[:, None], part[1], self.lse)

    @property
    def nbytes(self) -> int:
        sums = self.lse.nbytes + (0 if self.total is None else self.total.nbytes)
        return self.out.nbytes + sums + sum(part.nbytes for part in self.chosen)


class Residuals:
    """What is kept of all layers, for each guidance branch on its own; `totals` keeps the sums over all blocks too."""

    def __init__(self, *, totals: bool = False) -> None:
        self.totals = totals
        self._state: BranchState[dict[int, Residual]] = BranchState(dict)

    def clear(self) -> None:
        """Forgets everything."""
        self._state.clear()

    def at(self, call: SparseCall) -> Residual | None:
        """What is kept for this call, if it fits."""
        found = self._state.at(call.moment).get(call.layer)
        return found if found is not None and found.fits(call) else None

    def oldest(self, moment: Moment) -> int | None:
        """The step of the oldest part that is kept for the branch of this moment."""
        return min((layer.step for layer in self._state.at(moment).values()), default=None)

    def reuse(self, call: SparseCall, kept: Residual) -> Tensor:
        """Attention of the image queries: the exact blocks afresh, the others as they were."""
        return call.over(kept.chosen, prior=kept.out, prior_lse=kept.lse)[0]

    def others(self, call: SparseCall, chosen: Blocks, heads: Tensor | None = None) -> tuple[Part, Tensor]:
        """Attention over all but the chosen blocks, and the counts (B, H, NQ) of these; nothing for heads that are not
        among `heads`, bool (H,)."""
        blocks, counts = other_blocks(*chosen, call.sizes.shape[1])
        if heads is not None:
            counts = torch.where(heads[:, None], counts, 0)
        return call.over_rest((blocks, counts)), counts

    def refresh(self, call: SparseCall, chosen: Blocks) -> Tensor:
        """Attention of the image queries, all of it afresh; what the chosen blocks leave out is kept."""
        layers = self._state.at(call.moment)
        layers.pop(call.layer, None)  # Two of them at once would be more than was checked for.
        (out, lse), _ = self.others(call, chosen)
        result, total = call.over(chosen, prior=out, prior_lse=lse)
        kept_total = total if self.totals else None
        layers[call.layer] = Residual(chosen, out, lse, kept_total, call.moment.step, call.sizes, call.image)
        return result

    @property
    def nbytes(self) -> int:
        """Bytes that are held now."""
        return sum(layer.nbytes for branch in self._state.values() for layer in branch.values())


@dataclass(frozen=True)
class Need:
    """Bytes that one layer takes: the outputs, and beside them log-sum-exps and lists of exact blocks."""

    outputs: int
    beside: int


def needed(query: Tensor, image: int, density: float, block_size: int, *, totals: bool) -> Need:
    """What a call with so many image tokens will take, before anything is there; query is its (B, S, H, D)."""
    batch, tokens, heads, size = query.shape
    blocks = number_of_blocks(image, block_size)
    # A head may have half as much again as heads have in the mean, and text is always exact.
    width = min(blocks, kept_number(density, blocks) * 3 // 2) + number_of_blocks(tokens - image, block_size)
    lists = blocks * (width + 1)
    sums = image * (2 if totals else 1)
    return Need(batch * heads * image * size * query.element_size(), batch * heads * 4 * (sums + lists))
