"""Block attention on a CPU: the listed blocks are gathered, and torch's dense attention runs on what was gathered.

The listed keys, the tail and the prior are parts over different keys. Each part has an output and a log-sum-exp, and
parts are put together at the end: O = O1 + w (O2 - O1) with w = exp(L2 - L), L = log(exp L1 + exp L2).
"""

import math

import torch
from torch import Tensor

from accel.kernels.block_attention.reference import chosen
from accel.kernels.blocks import number_of_blocks, token_counts, token_mask

# Numbers in the gathered keys of one call: few enough that they, and the values beside them, are still in the cache
# when they are read.
_GATHERED = 1 << 18

# An output (batch, heads, tokens, head size) and its log-sum-exp (batch, heads, tokens).
Part = tuple[Tensor, Tensor]


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
    room = token_counts(sizes, key.shape[0], key.shape[1], block_size, key.device)
    exact = chosen(blocks, counts, room.shape[1])
    left = ~exact & (room > 0)[:, None, None]
    if not left.any():
        parts = [_dense(query, key, value, room, block_size, scale)]
    else:
        queries = _cut(query, block_size)
        parts = [_listed(queries, key, value, blocks, counts, room, block_size, scale)]
        if mean_key is not None and mean_value is not None:
            parts.append(_tail(queries, mean_key, mean_value, first_order, room, left, scale))
        parts = [(out.flatten(2, 3)[:, :, : query.shape[1]], lse[..., : query.shape[1]]) for out, lse in parts]
    if prior is not None and prior_lse is not None:
        known = torch.where((prior_lse > -math.inf)[..., None], prior.transpose(1, 2), 0.0)
        parts.append((known, prior_lse))
    return _finished(parts, query)


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, sizes: Tensor | None, block_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    room = token_counts(sizes, key.shape[0], key.shape[1], block_size, key.device)
    return _finished([_dense(query, key, value, room, block_size, scale)], query)


def _finished(parts: list[Part], query: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = parts[0]
    for other, other_lse in parts[1:]:
        both = torch.logaddexp(lse, other_lse)
        # Where both are empty, the weight is exp(-inf) and not exp(-inf + inf).
        weight = (other_lse - both.nan_to_num(neginf=0.0)).exp_()[..., None]
        out, lse = torch.lerp(out.float(), other.float(), weight), both
    return out.transpose(1, 2).to(query.dtype).contiguous(), lse.contiguous()


def _flash(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Part:
    """torch's dense attention with `bias` added to the scores, broadcast over them; it may be -inf everywhere."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=bias, scale=scale
    )
    if bias is not None:
        # torch gives zeros for both there.
        lse = lse.masked_fill((bias == -math.inf).all(-1), -math.inf)
    return out, lse


def _dense(query: Tensor, key: Tensor, value: Tensor, room: Tensor, block_size: int, scale: float) -> Part:
    length, group = key.shape[1], query.shape[2] // key.shape[2]
    bias = None
    if room.sum() < room.shape[0] * length:
        counted = token_mask(room, length, block_size)
        bias = _bias(counted)[:, None, None]
        key, value = (torch.where(counted[..., None, None], x, 0.0) for x in (key, value))
    keys, values, queries = key.transpose(1, 2), value.transpose(1, 2), query.transpose(1, 2)
    # Heads that share keys take their turns, which needs no copies of the keys.
    turns = [_flash(queries[:, turn::group], keys, values, bias, scale) for turn in range(group)]
    if group == 1:
        return turns[0]
    outs, lses = zip(*turns, strict=True)
    return torch.stack(outs, 2).flatten(1, 2), torch.stack(lses, 2).flatten(1, 2)


def _listed(
    queries: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    counts: Tensor,
    room: Tensor,
    block_size: int,
    scale: float,
) -> Part:
    """Attention of query blocks (B, H, NQ, block size, D) over the blocks in their lists."""
    batch, heads, number_q, _, size = queries.shape
    key_heads, number = key.shape[2], room.shape[1]
    counted = token_mask(room, number * block_size, block_size)
    keys, values = (_cut(x, block_size, counted).view(-1, block_size, size) for x in (key, value))
    biases = _bias(counted).view(-1, block_size)

    blocks, counts = _existing(blocks, counts, room)
    kinds = _kinds(blocks, counts, room, block_size)
    width = blocks.shape[-1]
    first = torch.arange(batch)[:, None, None, None]
    head = torch.arange(heads)[:, None, None] // (heads // key_heads)
    places = (((first * key_heads + head) * number) + blocks).flatten(0, 2)
    bias_places = (first * number + blocks).flatten(0, 2)
    rows = queries.view(-1, 1, block_size, size)

    order = kinds.argsort(stable=True)
    sorted_already = bool((order[1:] > order[:-1]).all())
    if not sorted_already:
        places, bias_places, rows = places[order], bias_places[order], rows[order]
    out = rows.new_empty(rows.shape)
    lse = rows.new_empty(rows.shape[:-1], dtype=torch.float32)

    start = 0
    for kind, repeats in zip(*(x.tolist() for x in kinds.unique(return_counts=True)), strict=True):
        end = start + repeats
        count, ragged = divmod(kind, 2)
        if count == 0:
            out[start:end], lse[start:end] = 0.0, -math.inf
            start = end
            continue
        step = min(max(1, _GATHERED // (count * block_size * size)), repeats)
        gathered = keys.new_empty(2, step * count, block_size, size)
        for begin in range(start, end, step):
            part = slice(begin, min(begin + step, end))
            here = part.stop - begin
            taken = places[part, :count].reshape(-1)
            held = gathered[:, : here * count]
            torch.index_select(keys, 0, taken, out=held[0])
            torch.index_select(values, 0, taken, out=held[1])
            near = held.view(2, here, 1, count * block_size, size)
            bias = None
            if ragged:
                bias = biases[bias_places[part, :count].reshape(-1)].view(here, 1, 1, count * block_size)
            out[part], lse[part] = _flash(rows[part], near[0], near[1], bias, scale)
        start = end
    if not sorted_already:
        back = order.argsort()
        out, lse = out[back], lse[back]
    return out.view(queries.shape), lse.view(batch, heads, number_q * block_size)


def _existing(blocks: Tensor, counts: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """The lists without blocks of size 0, with a block that exists behind their ends."""
    blocks = torch.where(torch.arange(blocks.shape[-1]) < counts[..., None], blocks, 0).to(torch.int64)
    counts = counts.to(torch.int64)
    missing = (room == 0)[:, None, None].expand(*blocks.shape[:-1], -1).gather(-1, blocks)
    if (missing & (torch.arange(blocks.shape[-1]) < counts[..., None])).any():
        missing |= torch.arange(blocks.shape[-1]) >= counts[..., None]
        blocks = blocks.gather(-1, missing.to(torch.int8).argsort(dim=-1, stable=True))
        counts = (~missing).sum(-1)
    return blocks, counts


def _kinds(blocks: Tensor, counts: Tensor, room: Tensor, block_size: int) -> Tensor:
    """For each list, twice its length, and one more if it holds a block that is not full."""
    short = (room < block_size)[:, None, None].expand(*blocks.shape[:-1], -1).gather(-1, blocks)
    short &= torch.arange(blocks.shape[-1]) < counts[..., None]
    return (2 * counts + short.any(-1)).reshape(-1)


def _tail(
    queries: Tensor,
    mean_key: Tensor,
    mean_value: Tensor,
    first_order: Tensor | None,
    room: Tensor,
    left: Tensor,
    scale: float,
) -> Part:
    """Attention of query blocks over one virtual token for each block that is left over, in float32."""
    batch, heads, number_q, block_size, size = queries.shape
    group = heads // mean_key.shape[2]
    rows = queries.float().view(batch * heads, number_q, block_size, size)
    if not room.all():
        # The mean of no tokens may be anything.
        mean_key, mean_value = (torch.where(room[..., None, None] > 0, x, 0.0) for x in (mean_key, mean_value))
    keys, values = (
        x.transpose(1, 2).repeat_interleave(group, 1).flatten(0, 1)[:, None].expand(-1, number_q, -1, -1)
        for x in (mean_key, mean_value)
    )
    weights = room.float().log()[:, None, None]
    bias = torch.where(left, weights, -math.inf).view(batch * heads, number_q, 1, -1)
    out, lse = _flash(rows, keys, values, bias, scale)
    if first_order is not None:
        matrix = first_order.repeat_interleave(group, 1).flatten(0, 1)
        # The term is proportional to the mass of the tail: relative to that mass, it is the same for all rows.
        out = torch.baddbmm(out.flatten(1, 2), rows.flatten(1, 2), matrix, alpha=scale)
    return out.view(queries.shape), lse.reshape(batch, heads, -1)


def _cut(x: Tensor, block_size: int, counted: Tensor | None = None) -> Tensor:
    """(batch, tokens, heads, head size) as contiguous (batch, heads, blocks, block size, head size).

    Tokens that the tensor does not have are zero, and with `counted` also those that do not count.
    """
    batch, length, heads, size = x.shape
    number = number_of_blocks(length, block_size)
    if counted is not None and not counted[:, :length].all():
        x = torch.where(counted[:, :length, None, None], x, 0.0)
    x = torch.nn.functional.pad(x.transpose(1, 2), (0, 0, 0, number * block_size - length))
    return x.contiguous().view(batch, heads, number, block_size, size)


def _bias(counted: Tensor) -> Tensor:
    return torch.where(counted, 0.0, -math.inf)
