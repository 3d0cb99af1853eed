"""Block attention in plain PyTorch: the specification that the other forms are tested against.

Every score is made and the ones that do not count are minus infinity: all of them, whatever the lists leave out.
"""

import math

import torch
from torch import Tensor

from accel.kernels.blocks import listed_blocks, number_of_blocks, require_distinct, token_counts, token_mask


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    counts: Tensor,
    block_size: int,
    sizes: Tensor | None,
    mean_key: Tensor | None,
    mean_value: Tensor | None,
    first_order: Tensor | None,
    prior: Tensor | None,
    prior_lse: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)
    batch, length, heads, _ = query.shape
    group = heads // key.shape[2]
    room = token_counts(sizes, batch, key.shape[1], block_size, key.device)
    query_block = torch.arange(length, device=query.device) // block_size
    key_block = torch.arange(key.shape[1], device=key.device) // block_size
    exact = listed_blocks(blocks, counts, number_of_blocks(key.shape[1], block_size))
    require_distinct("block_attention", exact, counts)
    exact = exact[:, :, query_block]

    scaled = _heads_first(query, wide) * scale
    keys, values = (_heads_first(_cleared(x, room, block_size), wide, group) for x in (key, value))
    counted = token_mask(room, key.shape[1], block_size)[:, None, None]
    scores = [(scaled @ keys.mT).masked_fill(~(exact[..., key_block] & counted), -math.inf)]
    if mean_key is not None:
        weight = room[:, None, None].to(wide)
        token = scaled @ _heads_first(mean_key, wide, group).mT + weight.log()
        scores.append(token.masked_fill(exact | (weight == 0), -math.inf))
    if prior_lse is not None:
        scores.append(prior_lse.to(wide)[..., None])

    lse = torch.logsumexp(torch.cat(scores, -1), -1)
    # A query that attends to nothing has weights of zero, not of exp(-inf + inf).
    weights = [(part - lse.nan_to_num(neginf=0.0)[..., None]).exp() for part in scores]
    out = weights[0] @ values
    if mean_value is not None:
        exists = room[..., None, None] > 0
        out = out + weights[1] @ _heads_first(torch.where(exists, mean_value, 0.0), wide, group)
    if first_order is not None:
        mass = weights[1].sum(-1, keepdim=True)
        out = out + mass * (scaled @ first_order.to(wide).repeat_interleave(group, 1))
    if prior is not None:
        out = out + torch.where(weights[-1] > 0, weights[-1] * _heads_first(prior, wide), 0.0)
    return out.transpose(1, 2).to(query.dtype).contiguous(), lse


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, sizes: Tensor | None, block_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    number = number_of_blocks(key.shape[1], block_size)
    rows = (query.shape[0], query.shape[2], number_of_blocks(query.shape[1], block_size))
    blocks = torch.arange(number, device=query.device).expand(*rows, -1)
    counts = blocks.new_full(rows, number)
    return block_attention(query, key, value, blocks, counts, block_size, sizes, None, None, None, None, None, scale)


def _heads_first(x: Tensor, dtype: torch.dtype, group: int = 1) -> Tensor:
    return x.to(dtype).transpose(1, 2).repeat_interleave(group, 1)


def _cleared(x: Tensor, room: Tensor, block_size: int) -> Tensor:
    """The tensor with zeros for tokens that do not count, since 0 * NaN is NaN."""
    return torch.where(token_mask(room, x.shape[1], block_size)[..., None, None], x, 0.0)
