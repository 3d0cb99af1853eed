"""Block attention on a CPU: the listed blocks are gathered, and torch's dense attention runs on what was gathered.

The listed keys, the tail and the prior are parts over different keys. Each part has an output and a log-sum-exp, and
parts are put together at the end: O = O1 + w (O2 - O1) with w = exp(L2 - L), L = log(exp L1 + exp L2). Heads go one
after the other, so that what is copied of a head is still in the cache when it is read.
"""

import math

import torch
from torch import Tensor

from accel.kernels.blocks import listed_blocks, number_of_blocks, require_distinct, token_counts, token_mask

# Numbers in the keys that are gathered at once by one thread: few enough that they, and the values beside them, are
# still in the cache when they are read. Several threads wait for each other after every call: each takes more at once.
_GATHERED = 1 << 18
_GATHERED_BESIDE_OTHERS = 1 << 20

# An output and its log-sum-exp, which has no last dimension.
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
    batch, length, heads, size = query.shape
    room = token_counts(sizes, batch, key.shape[1], block_size, key.device)
    exact = listed_blocks(blocks, counts, room.shape[1])
    require_distinct("block_attention", exact, counts)
    left = ~exact & (room > 0)[:, None, None]
    if not left.any():
        part = _dense(query, key, value, room, block_size, scale)
        if prior is not None and prior_lse is not None:
            part = _merged(part, _known(prior.transpose(1, 2), prior_lse))
        return part[0].transpose(1, 2).to(query.dtype).contiguous(), part[1].contiguous()

    blocks, counts = _existing(blocks, counts, room)
    kinds = _kinds(blocks, counts, room, block_size)
    counted = token_mask(room, room.shape[1] * block_size, block_size)
    ragged = not counted.all()
    bias = _bias(counted).view(batch, -1, block_size)
    number = number_of_blocks(length, block_size)
    out = query.new_empty(batch, number * block_size, heads, size)
    lse = query.new_empty((batch, heads, number, block_size), dtype=torch.float32)
    group = heads // key.shape[2]
    for b in range(batch):
        exists = room[b] > 0
        weights = room[b].float().log()
        for head in range(heads):
            of = head // group
            if head % group == 0:
                held = [_rows(x[b, :, of], block_size) for x in (key, value)]
                if ragged:
                    held = [torch.where(counted[b].view(-1, block_size, 1), x, 0.0) for x in held]
                keys, values = (x.contiguous() for x in held)
            rows = _rows(query[b, :, head], block_size)
            part = _listed(rows, keys, values, bias[b], blocks[b, head], kinds[b, head], scale)
            if mean_key is not None and mean_value is not None:
                # The mean of no tokens may be anything.
                k, v = (torch.where(exists[:, None], x[b, :, of], 0.0) for x in (mean_key, mean_value))
                matrix = None if first_order is None else first_order[b, of]
                part = _merged(part, _tail(rows.float(), k, v, matrix, weights, left[b, head], scale))
            if prior is not None and prior_lse is not None:
                known = _rows(prior[b, :, head], block_size), _rows(prior_lse[b, head, :, None], block_size)[..., 0]
                part = _merged(part, _known(*known))
            _rows(out[b, :, head], block_size).copy_(part[0])
            lse[b, head] = part[1]
    return out[:, :length].contiguous(), lse.flatten(2)[..., :length].contiguous()


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, sizes: Tensor | None, block_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    room = token_counts(sizes, key.shape[0], key.shape[1], block_size, key.device)
    out, lse = _dense(query, key, value, room, block_size, scale)
    return out.transpose(1, 2).contiguous(), lse.contiguous()


def _merged(one: Part, other: Part) -> Part:
    """Both parts as one, in float32."""
    (out, lse), (other_out, other_lse) = one, other
    both = torch.logaddexp(lse, other_lse)
    # Where both are empty, the weight is exp(-inf) and not exp(-inf + inf).
    weight = (other_lse - both.nan_to_num(neginf=0.0)).exp_()[..., None]
    return torch.lerp(out.float(), other_out.float(), weight), both


def _known(prior: Tensor, prior_lse: Tensor) -> Part:
    return torch.where((prior_lse > -math.inf)[..., None], prior, 0.0), prior_lse


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
    """Attention over all keys: (B, H, S, D) and (B, H, S)."""
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
    rows: Tensor, keys: Tensor, values: Tensor, bias: Tensor, blocks: Tensor, kinds: Tensor, scale: float
) -> Part:
    """Attention of one head's query blocks (NQ, block size, D) over the blocks in their lists (NQ, K)."""
    number, block_size, size = rows.shape
    out, lse = rows.new_empty(rows.shape), rows.new_empty((number, block_size), dtype=torch.float32)
    threads = torch.get_num_threads()
    at_once = _GATHERED if threads == 1 else _GATHERED_BESIDE_OTHERS * threads
    for kind, repeats in zip(*(x.tolist() for x in kinds.unique(return_counts=True)), strict=True):
        count, ragged = divmod(kind, 2)
        # In the usual case that all lists are of one kind, rows are taken as they stand.
        where = None if repeats == number else (kinds == kind).nonzero()[:, 0]
        if count == 0:
            empty = slice(None) if where is None else where
            out[empty], lse[empty] = 0.0, -math.inf
            continue
        step = min(max(1, at_once // (count * block_size * size)), repeats)
        gathered = keys.new_empty(2, step * count, block_size, size)
        for begin in range(0, repeats, step):
            here = min(step, repeats - begin)
            part = slice(begin, begin + here) if where is None else where[begin : begin + here]
            taken = blocks[part, :count].reshape(-1)
            held = gathered[:, : here * count]
            torch.index_select(keys, 0, taken, out=held[0])
            torch.index_select(values, 0, taken, out=held[1])
            near = held.view(2, here, 1, count * block_size, size)
            added = bias[taken].view(here, 1, 1, -1) if ragged else None
            found, found_lse = _flash(rows[part].unsqueeze(1), near[0], near[1], added, scale)
            out[part], lse[part] = found[:, 0], found_lse[:, 0]
    return out, lse


def _existing(blocks: Tensor, counts: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """The lists without blocks of size 0, with a block that exists behind their ends."""
    listed = torch.arange(blocks.shape[-1], device=blocks.device) < counts[..., None]
    blocks = torch.where(listed, blocks, 0).to(torch.int64)
    missing = (room == 0)[:, None, None].expand(*blocks.shape[:-1], -1).gather(-1, blocks)
    if not (missing & listed).any():
        return blocks, counts.to(torch.int64)
    kept = listed & ~missing
    return blocks.gather(-1, (~kept).to(torch.int8).argsort(dim=-1, stable=True)), kept.sum(-1)


def _kinds(blocks: Tensor, counts: Tensor, room: Tensor, block_size: int) -> Tensor:
    """For each list, twice its length, and one more if it holds a block that is not full."""
    short = (room < block_size)[:, None, None].expand(*blocks.shape[:-1], -1).gather(-1, blocks)
    short &= torch.arange(blocks.shape[-1], device=blocks.device) < counts[..., None]
    return 2 * counts + short.any(-1)


def _tail(
    rows: Tensor,
    mean_key: Tensor,
    mean_value: Tensor,
    first_order: Tensor | None,
    weights: Tensor,
    left: Tensor,
    scale: float,
) -> Part:
    """Attention of one head's query blocks over one virtual token for each block that is left over, in float32."""
    keys, values = (x.expand(rows.shape[0], 1, *x.shape) for x in (mean_key, mean_value))
    bias = torch.where(left, weights, -math.inf)[:, None, None]
    out, lse = (x[:, 0] for x in _flash(rows.unsqueeze(1), keys, values, bias, scale))
    if first_order is not None:
        # The term is proportional to the mass of the tail: relative to that mass, it is the same for all rows.
        out = torch.baddbmm(out, rows, first_order.expand(rows.shape[0], -1, -1), alpha=scale)
    return out, lse


def _rows(x: Tensor, block_size: int) -> Tensor:
    """(tokens, D) as (blocks, block size, D): a view, or where the last block is short a copy with zeros behind."""
    missing = -len(x) % block_size
    if missing:
        x = torch.nn.functional.pad(x, (0, 0, 0, missing))
    return x.unflatten(0, (-1, block_size))


def _bias(counted: Tensor) -> Tensor:
    zeros = torch.zeros(counted.shape, dtype=torch.float32, device=counted.device)
    return zeros.masked_fill_(~counted, -math.inf)
