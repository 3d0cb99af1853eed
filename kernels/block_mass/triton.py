"""Block mass as Triton kernels: attention without values, whose scores become sums where they arise.

A program holds a tile of queries and goes along the keys. Nothing is carried from one key block to the next, since the
log-sum-exp of a row is known: no maximum, no rescaling, and each sum is written once.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels import blocks
from accel.kernels.block_mass.reference import LIMIT
from accel.kernels.forms import on_device

# Queries and keys of a tile.
ROWS = {torch.float16: 128, torch.bfloat16: 128, torch.float32: 64}
COLUMNS = 64
# Channels that are multiplied at a time where a product is taken in parts: in float32, whose products need registers,
# and with means, which are few.
DEPTH = 32
WARPS = {torch.float16: 8, torch.bfloat16: 8, torch.float32: 4}
TAIL_WARPS = 8
STAGES = 3
_LOG2_E = math.log2(math.e)


@triton.jit
def _counts(tokens, sizes, batch, length, blocks, BLOCK: tl.constexpr, HAS_SIZES: tl.constexpr):
    """Which of these tokens count."""
    counted = tokens < length
    if HAS_SIZES:
        size = tl.load(sizes + batch * blocks + tokens // BLOCK, mask=counted, other=0)
        counted = counted & (tokens % BLOCK < size)
    return counted


@triton.jit
def _part(x, tokens, held, token_stride, first, DEPTH: tl.constexpr, D: tl.constexpr):
    """The channels from `first` on of the tokens that are held, and zeros for the others: (tokens, DEPTH)."""
    channels = first + tl.arange(0, DEPTH)
    at = x + tokens[:, None].to(tl.int64) * token_stride + channels[None, :]
    return tl.load(at, mask=held[:, None] & (channels < D)[None, :], other=0.0)


@triton.jit
def _shares(scores, scale, levels, LIMIT: tl.constexpr):
    """exp2 of the scaled scores less their row's level, which a stale level cannot make overflow."""
    exponents = scores * scale - levels[:, None]
    return tl.exp2(tl.minimum(exponents, LIMIT, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _over_rows(shares, counted, BLOCK: tl.constexpr):
    """Sums over the rows of each block of queries, or over all rows that are only a part of one."""
    ROWS: tl.constexpr = shares.shape[0]
    shares = tl.where(counted[:, None], shares, 0.0)
    if ROWS > BLOCK:
        sums = tl.sum(tl.reshape(shares, (ROWS // BLOCK, BLOCK, shares.shape[1])), 1)
    else:
        sums = tl.sum(shares, 0)[None, :]
    return sums


@triton.jit
def _block_mass(
    query,
    key,
    lse,
    sizes,
    query_sizes,
    mass,
    queries,
    keys,
    query_blocks,
    key_blocks,
    heads,
    group,
    scale,
    log2_e,
    query_batch_stride,
    query_token_stride,
    query_head_stride,
    key_batch_stride,
    key_token_stride,
    key_head_stride,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    LIMIT: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    HAS_QUERY_SIZES: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // heads, pair % heads
    query += batch * query_batch_stride + head * query_head_stride
    key += batch * key_batch_stride + (head // group) * key_head_stride
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    counted = _counts(rows, query_sizes, batch, queries, query_blocks, BLOCK, HAS_QUERY_SIZES)
    levels = tl.load(lse + pair * queries + rows, mask=counted, other=0.0) * log2_e
    if DEPTH == D_PAD:
        q = _part(query, rows, counted, query_token_stride, 0, DEPTH, D)

    # A row of the result is a block of queries, or the part of one that this program has.
    HEIGHT: tl.constexpr = BLOCK if BLOCK < ROWS else ROWS
    results = tl.program_id(0) * (ROWS // HEIGHT) + tl.arange(0, ROWS // HEIGHT)
    stored = (results < query_blocks * (BLOCK // HEIGHT))[:, None]
    WIDTH: tl.constexpr = BLOCK if BLOCK < COLUMNS else COLUMNS
    column_blocks = tl.arange(0, COLUMNS // WIDTH)
    mass += (pair * query_blocks * (BLOCK // HEIGHT) + results[:, None]) * key_blocks + column_blocks[None, :]
    by_block = tl.zeros((ROWS, COLUMNS // WIDTH), tl.float32)
    for start in tl.range(0, keys, COLUMNS, num_stages=STAGES):
        columns = start + tl.arange(0, COLUMNS)
        # Padded keys are read, so that the read waits for no size; what they hold stays in their column of scores.
        if DEPTH == D_PAD:
            k = _part(key, columns, columns < keys, key_token_stride, 0, DEPTH, D)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        else:
            scores = tl.zeros((ROWS, COLUMNS), tl.float32)
            for first in range(0, D_PAD, DEPTH):
                some = _part(query, rows, counted, query_token_stride, first, DEPTH, D)
                k = _part(key, columns, columns < keys, key_token_stride, first, DEPTH, D)
                scores = tl.dot(some, tl.trans(k), scores, input_precision="ieee")
        real = _counts(columns, sizes, batch, keys, key_blocks, BLOCK, HAS_SIZES)
        shares = tl.where(real[None, :], _shares(scores, scale, levels, LIMIT), 0.0)
        if COLUMNS > BLOCK:
            by_block = tl.sum(tl.reshape(shares, (ROWS, COLUMNS // WIDTH, WIDTH)), 2)
        else:
            # A block wider than the tile goes on from its first part; what is stored last is the whole.
            by_block = tl.where(start % BLOCK == 0, 0.0, by_block) + tl.sum(shares, 1)[:, None]
        inside = stored & (column_blocks < key_blocks - start // BLOCK)[None, :]
        tl.store(mass + start // BLOCK, _over_rows(by_block, counted, BLOCK), mask=inside)


@triton.jit
def _tail_mass(
    query,
    mean_key,
    lse,
    sizes,
    query_sizes,
    tail_mass,
    queries,
    keys,
    query_blocks,
    key_blocks,
    heads,
    group,
    scale,
    log2_e,
    query_batch_stride,
    query_token_stride,
    query_head_stride,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    LIMIT: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    HAS_QUERY_SIZES: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // heads, pair % heads
    key_heads = heads // group
    query += batch * query_batch_stride + head * query_head_stride
    mean_key += (batch * key_blocks * key_heads + head // group) * D
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    counted = _counts(rows, query_sizes, batch, queries, query_blocks, BLOCK, HAS_QUERY_SIZES)
    levels = tl.load(lse + pair * queries + rows, mask=counted, other=0.0) * log2_e

    HEIGHT: tl.constexpr = BLOCK if BLOCK < ROWS else ROWS
    results = tl.program_id(0) * (ROWS // HEIGHT) + tl.arange(0, ROWS // HEIGHT)
    stored = (results < query_blocks * (BLOCK // HEIGHT))[:, None]
    tail_mass += (pair * query_blocks * (BLOCK // HEIGHT) + results[:, None]) * key_blocks
    for start in range(0, key_blocks, COLUMNS):
        at = start + tl.arange(0, COLUMNS)
        exists = at < key_blocks
        number = tl.minimum(keys - at * BLOCK, BLOCK)
        if HAS_SIZES:
            number = tl.minimum(number, tl.load(sizes + batch * key_blocks + at, mask=exists, other=0))
        scores = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, D_PAD, DEPTH):
            some = _part(query, rows, counted, query_token_stride, first, DEPTH, D)
            means = _part(mean_key, at, exists, key_heads * D, first, DEPTH, D)
            # A mean is finer than the half type that its product with queries takes: it goes in as two numbers.
            coarse = means.to(some.dtype)
            scores = tl.dot(some, tl.trans(coarse), scores, input_precision="ieee")
            if some.dtype != tl.float32:
                fine = (means - coarse.to(tl.float32)).to(some.dtype)
                scores = tl.dot(some, tl.trans(fine), scores, input_precision="ieee")
        real = (number > 0)[None, :]
        shares = tl.where(real, _shares(scores, scale, levels, LIMIT), 0.0)
        total = tl.where(real, _over_rows(shares, counted, BLOCK) * number.to(tl.float32)[None, :], 0.0)
        tl.store(tail_mass + at[None, :], total, mask=stored & exists[None, :])


def block_mass(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    block_size: int,
    sizes: Tensor | None,
    query_sizes: Tensor | None,
    mean_key: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    batch, queries, heads, size = query.shape
    keys = key.shape[1]
    query_blocks, key_blocks = (blocks.number_of_blocks(length, block_size) for length in (queries, keys))
    rows = ROWS[query.dtype]
    # Where a block of queries is more than a tile, its parts are results of their own at first.
    parts = max(block_size // rows, 1)
    mass = torch.empty(batch, heads, query_blocks, parts, key_blocks, dtype=torch.float32, device=query.device)
    tail_mass = None if mean_key is None else torch.empty_like(mass)
    if mass.numel() == 0:
        return _whole(mass), None if tail_mass is None else _whole(tail_mass)
    query, key = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key))
    lse = lse.contiguous()
    held, query_held = (lse if counts is None else counts.contiguous() for counts in (sizes, query_sizes))
    lengths = (queries, keys, query_blocks, key_blocks, heads, heads // key.shape[2], scale * _LOG2_E, _LOG2_E)
    padded = 64 if size <= 64 else 128
    constants = {
        "BLOCK": block_size,
        "ROWS": rows,
        "COLUMNS": COLUMNS,
        "D": size,
        "D_PAD": padded,
        "LIMIT": LIMIT * _LOG2_E,
        "HAS_SIZES": sizes is not None,
        "HAS_QUERY_SIZES": query_sizes is not None,
        "enable_fp_fusion": True,
    }
    grid = (triton.cdiv(query_blocks * block_size, rows), batch * heads)
    with on_device(query):
        _block_mass[grid](
            query,
            key,
            lse,
            held,
            query_held,
            mass,
            *lengths,
            *query.stride()[:3],
            *key.stride()[:3],
            DEPTH=DEPTH if query.dtype == torch.float32 else padded,
            STAGES=STAGES,
            num_warps=WARPS[query.dtype],
            **constants,
        )
        if mean_key is not None:
            _tail_mass[grid](
                query,
                mean_key.contiguous(),
                lse,
                held,
                query_held,
                tail_mass,
                *lengths,
                *query.stride()[:3],
                DEPTH=DEPTH,
                num_warps=TAIL_WARPS,
                **constants,
            )
    return _whole(mass), None if tail_mass is None else _whole(tail_mass)


def _whole(parts: Tensor) -> Tensor:
    return parts.squeeze(3) if parts.shape[3] == 1 else parts.sum(dim=3)
