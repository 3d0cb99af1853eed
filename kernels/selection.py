"""Which key blocks each block of queries attends exactly: a fixed number per row, a threshold, or a budget per head.

All of it is plain torch on small tensors: a score for every pair of blocks, never for a pair of tokens. The choice
goes to `accel.kernels.block_attention` as a list of block ids with a count for each row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["head_budgets", "head_recalls", "kept_number", "other_blocks", "threshold_blocks", "top_blocks"]

_FIRST, _LAST = 2**31 - 1, -(2**31)


def top_blocks(
    scores: Tensor,
    keep: int | Tensor,
    *,
    always: Tensor | None = None,
    sizes: Tensor | None = None,
    width: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The `keep` highest blocks of every row (PISA, arXiv 2602.01077, section 3.2; AdaSpa, arXiv 2502.21079).

    Args:
        scores: (B, H, NQ, N) float32, one score per block of queries and block of keys. Equal scores go by the lower
            block id, and a score that is NaN counts as the highest, so that its block is exact.
        keep: blocks of a row in all, `always` among them; an int, or an int tensor (H,) or (B, H).
        always: bool (N,) or (B, N), blocks that every row has, also where they are more than `keep`.
        sizes: (B, N) or (1, N), tokens that count in each block; blocks of size 0 are never chosen, nor counted.
        width: K of the result. A longer row loses its lowest blocks, those of `always` last. Without it K is the
            longest row, and finding that waits for the device unless `keep` is an int and `always` is None.

    Returns:
        blocks: int32 (B, H, NQ, K). A row's blocks ascend and stand first; behind them stand valid ids without meaning.
        counts: int32 (B, H, NQ), how many blocks of each row count.

    Raises:
        ValueError: a shape does not fit, or `keep` or `width` is negative.
    """
    _require_scores("top_blocks", scores)
    if isinstance(keep, int):
        if keep < 0:
            raise ValueError(f"top_blocks keeps 0 blocks or more: keep is {keep}")
        wanted = torch.full((1, 1, 1), keep, dtype=torch.int64, device=scores.device)
        if width is None and always is None:
            width = min(keep, scores.shape[-1])
    else:
        if keep.shape not in ((scores.shape[1],), tuple(scores.shape[:2])):
            raise ValueError(
                f"top_blocks takes keep as an int, (heads,) or (batch, heads): it has shape {tuple(keep.shape)}, "
                f"scores have {tuple(scores.shape)}"
            )
        wanted = keep.to(scores.device, torch.int64).reshape(-1, scores.shape[1], 1)
    return _choose("top_blocks", scores, wanted, always, sizes, width)


def threshold_blocks(
    scores: Tensor,
    beta: float,
    *,
    always: Tensor | None = None,
    sizes: Tensor | None = None,
    width: int | None = None,
    among: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The blocks that stand out of their row: score > mean + beta * deviation (Sol-Attn, arXiv 2607.24027).

    Mean and deviation are those of the row's own scores over all its blocks of size above 0; with scores
    mean_query . mean_key they are what the paper gets from the mean and the covariance of the mean keys. A row has at
    least one block, its highest, and all of them with beta = -inf. For normally distributed scores the kept fraction
    is 1 - Phi(beta).

    `among`, bool (N,) or (B, N), says whose scores make mean and deviation, all by default: text does not raise the
    bar for the image. Args, Returns and Raises else as of `top_blocks`. Rows differ in length here, so without `width`
    the device is asked.
    """
    _require_scores("threshold_blocks", scores)
    exists = _exists(scores, sizes)
    counted = exists if among is None else exists & _for_scores("among", among, scores)
    values = torch.where(exists, scores.float(), 0.0)
    number = counted.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(counted, values, 0.0).sum(-1, keepdim=True) / number
    variance = torch.where(counted, (values - mean).square(), 0.0).sum(-1, keepdim=True) / number
    bar = torch.full_like(mean, beta) if math.isinf(beta) else mean + beta * variance.sqrt()
    # Written so that a NaN, in a score or in the mean of its row, keeps blocks exact instead of dropping them.
    kept = exists & ~(values <= bar)
    if always is not None:
        kept = kept | (_for_scores("always", always, scores) & exists)
        wanted = kept.sum(-1)
    else:
        wanted = kept.sum(-1).clamp(min=1)
    return _choose("threshold_blocks", scores, wanted, always, sizes, width)


def other_blocks(blocks: Tensor, counts: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The blocks that a choice leaves out.

    Args:
        blocks: int32 (B, H, NQ, K), the chosen blocks of each row, distinct, in any order.
        counts: int32 (B, H, NQ), how many at the start of each row count.
        number: N, blocks in all.

    Returns:
        blocks: int32 (B, H, NQ, N). The blocks that were not chosen ascend and stand first; behind them stand valid ids
            without meaning.
        counts: int32 (B, H, NQ), how many of them there are.

    Raises:
        ValueError: a shape does not fit, or a row is longer than there are blocks.
    """
    width = blocks.shape[-1] if blocks.ndim else 0
    if blocks.ndim != 4 or blocks.shape[:-1] != counts.shape or width > number:
        raise ValueError(
            f"other_blocks takes blocks (B, H, NQ, K) with K up to {number} and counts (B, H, NQ): they have shapes "
            f"{tuple(blocks.shape)} and {tuple(counts.shape)}"
        )
    counted = torch.arange(width, device=blocks.device) < counts[..., None]
    # What does not count goes to a place of its own behind all blocks, so that it hides none.
    places = torch.where(counted, blocks, number).to(torch.int64)
    chosen = torch.zeros((*counts.shape, number + 1), dtype=torch.bool, device=blocks.device)
    chosen = chosen.scatter_(-1, places, True)[..., :number]
    ids = torch.arange(number, dtype=torch.int32, device=blocks.device)
    others = torch.where(chosen, number, ids).sort(-1).values
    return others.clamp(max=max(0, number - 1)), (number - counts).to(torch.int32)


def kept_number(density: float, number_of_blocks: int) -> int:
    """Blocks kept of so many at a density: the nearest whole number, halves up, and at least one of any."""
    return min(number_of_blocks, max(1, math.floor(density * number_of_blocks + 0.5)))


def head_budgets(
    mass: Tensor, density: float, recall: float = 0.8, sizes: Tensor | None = None, recalls: Tensor | None = None
) -> Tensor:
    """Blocks per row for every head: heads whose attention is concentrated give to heads whose is not (AdaSpa 3.4).

    Of the heads whose recall, as `head_recalls` gives it, is above the level `recall`, at most half of all, the n
    highest go down from k = density * N to k/2 (sparsity (1 + s)/2), and the n lowest up to 3k/2 (sparsity
    (3s - 1)/2). Where k is odd the lower level is rounded up, and where 3k/2 exceeds N both levels stay nearer to k, so
    that the mean over heads is always k exactly.

    Args:
        mass: (B, H, NQ, N) float32, as from `accel.kernels.block_mass`.
        density: fraction of the blocks kept in the mean over heads, in (0, 1].
        recall: the level, in 0..1.
        sizes: (B, N) or (1, N); N is then a batch's number of blocks of size above 0.
        recalls: (B, H') float32, where the mass is that of some heads alone, of all that give to each other.

    Returns:
        int64 (B, H), or (B, H') where there are `recalls`, for `top_blocks`. Equal recalls go by the lower head.

    Raises:
        ValueError: density is not in (0, 1], or a shape does not fit.
    """
    kept, number, _ = _kept("head_budgets", mass, density, sizes)
    share = head_recalls(mass, density, sizes) if recalls is None else recalls
    if share.ndim != 2 or share.shape[0] != mass.shape[0]:
        raise ValueError(f"head_budgets takes recalls (B, H'): they have shape {tuple(share.shape)}")
    heads = share.shape[1]
    movers = (share > recall).sum(-1, keepdim=True).clamp(max=heads // 2)
    order = share.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(heads, device=mass.device).expand_as(order))
    step = torch.minimum(kept // 2, number - kept)
    return kept - step * (rank < movers).long() + step * (rank >= heads - movers).long()


def head_recalls(mass: Tensor, density: float, sizes: Tensor | None = None) -> Tensor:
    """The share of a head's mass that the k = density * N highest blocks of its rows hold (AdaSpa 3.4), 0 without mass.

    Arguments and errors are those of `head_budgets`; the result is float32 (B, H).
    """
    kept, _, exists = _kept("head_recalls", mass, density, sizes)
    held = torch.where(exists, mass.float(), 0.0)
    # A batch with fewer blocks keeps fewer than `most`, which the comparison with its own number cuts off.
    most = kept_number(density, mass.shape[-1])
    top = held.topk(most).values
    within = torch.arange(most, device=mass.device) < kept[:, None, None]
    share = torch.where(within, top, 0.0).sum((-2, -1)) / held.sum((-2, -1))
    return share.nan_to_num(0.0)


def _kept(name: str, mass: Tensor, density: float, sizes: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks kept of each batch and how many it has, both int64 (B, 1), and which exist, bool (B, 1, 1, N)."""
    _require_scores(name, mass)
    if not 0 < density <= 1:
        raise ValueError(f"{name} takes a density above 0 and up to 1: density is {density}")
    batch, _, _, blocks = mass.shape
    exists = _exists(mass, sizes).expand(batch, 1, 1, blocks)
    number = exists.sum(-1)[:, 0]
    kept = torch.minimum((number.double() * density + 0.5).floor().to(torch.int64).clamp(min=1), number)
    return kept, number, exists


def _choose(
    operation: str, scores: Tensor, wanted: Tensor, always: Tensor | None, sizes: Tensor | None, width: int | None
) -> tuple[Tensor, Tensor]:
    """The first `wanted` blocks (broadcast to (B, H, NQ)) of every row, those of `always` before all others."""
    if width is not None and width < 0:
        raise ValueError(f"{operation} takes a width of 0 or more: width is {width}")
    blocks = scores.shape[-1]
    exists = _exists(scores, sizes)
    # In place from here on: of the tensors that have a number for every pair of blocks only one is int64.
    order = _ordered(scores).masked_fill_(~exists, _LAST)
    available = exists.sum(-1)
    if always is not None:
        required = _for_scores("always", always, scores) & exists
        order.masked_fill_(required, _FIRST)
        wanted = torch.maximum(wanted, required.sum(-1))
    counts = torch.minimum(wanted, available).expand(scores.shape[:-1])
    if width is None:
        width = int(counts.max()) if counts.numel() else 0
    width = min(width, blocks)
    counts = counts.clamp(max=width)
    ids = torch.arange(blocks, device=scores.device)
    # No two keys are equal, so that every implementation of topk finds the same blocks.
    keys = order.bitwise_left_shift_(32).add_(blocks - 1 - ids)
    chosen = blocks - 1 - (keys.topk(width).values & 0xFFFFFFFF)
    behind = torch.arange(width, device=scores.device) >= counts[..., None]
    chosen = chosen.masked_fill(behind, blocks).to(torch.int32).sort(-1).values
    return chosen.clamp(max=max(0, blocks - 1)), counts.to(torch.int32)


def _ordered(scores: Tensor) -> Tensor:
    """int64 numbers above _LAST and below _FIRST that compare as the float32 scores do, NaN above all."""
    bits = (torch.where(scores.isnan(), torch.inf, scores.float()) + 0.0).view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)


def _exists(scores: Tensor, sizes: Tensor | None) -> Tensor:
    """bool, broadcastable to scores: the blocks that hold a token."""
    if sizes is None:
        return torch.ones((1, 1, 1, scores.shape[-1]), dtype=torch.bool, device=scores.device)
    return _for_scores("sizes", sizes, scores) > 0


def _for_scores(name: str, per_block: Tensor, scores: Tensor) -> Tensor:
    """(N,), (1, N) or (B, N) as something that broadcasts to (B, H, NQ, N), on the device of the scores."""
    if per_block.shape[-1:] != scores.shape[-1:] or per_block.shape[:-1] not in ((), (1,), scores.shape[:1]):
        raise ValueError(
            f"{name} is ({scores.shape[-1]},) or ({scores.shape[0]}, {scores.shape[-1]}) for scores of shape "
            f"{tuple(scores.shape)}: it has shape {tuple(per_block.shape)}"
        )
    return per_block.to(scores.device).reshape(-1, 1, 1, scores.shape[-1])


def _require_scores(operation: str, scores: Tensor) -> None:
    if scores.ndim != 4 or not scores.is_floating_point():
        raise ValueError(
            f"{operation} takes floating-point scores of shape (batch, heads, query blocks, blocks): they are "
            f"{str(scores.dtype).removeprefix('torch.')} of shape {tuple(scores.shape)}"
        )
