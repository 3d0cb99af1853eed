"""Block statistics as Triton kernels: keys and values are read in one pass, and a block's matrix stays in registers.

The matrix of a head is made in two stages without atomics: a number of programs that the shape decides each add up the
matrices of their own blocks, and a second kernel adds the partial sums in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels import blocks
from accel.kernels.forms import on_device

# Partial sums for one head: at most so many, and each of at least so many blocks, since writing and reading a partial
# sum costs about as much as reading two blocks.
MAX_SPLITS = 32
BLOCKS_PER_SPLIT = 8
# Tokens of a block that are multiplied at a time.
TOKENS = {torch.float16: 64, torch.bfloat16: 64, torch.float32: 16}
# Channels of the value that one program multiplies with all of the key: products of float32 need their registers.
COLUMNS = {torch.float16: 128, torch.bfloat16: 128, torch.float32: 32}
# With `spread`, the matrix of a block stands beside that of the head; of so many tokens, blocks leave room for fewer.
SPREAD_TOKENS, SPREAD_COLUMNS = 128, 64
STAGES = 2
# Elements of a matrix that one program of the second stage adds up.
LANES = 1024


@triton.jit
def _block_length(sizes, batch, block, length, blocks, BLOCK: tl.constexpr, HAS_SIZES: tl.constexpr):
    """How many tokens of a block count; 0 for a block behind the last."""
    count = tl.minimum(length - block * BLOCK, BLOCK)
    if HAS_SIZES:
        count = tl.minimum(count, tl.load(sizes + batch * blocks + block, mask=block < blocks, other=0))
    return tl.maximum(count, 0)


@triton.jit
def _block_means(
    x,
    sizes,
    means,
    length,
    blocks,
    heads,
    batch_stride,
    token_stride,
    head_stride,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    HAS_SIZES: tl.constexpr,
):
    block = tl.program_id(0)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    tokens = tl.arange(0, BLOCK)
    channels = tl.arange(0, D_PAD)
    count = _block_length(sizes, batch, block, length, blocks, BLOCK, HAS_SIZES)
    start = x + batch * batch_stride + head * head_stride + tl.cast(block, tl.int64) * BLOCK * token_stride
    values = tl.load(
        start + tokens[:, None] * token_stride + channels[None, :],
        mask=(tokens < count)[:, None] & (channels < D)[None, :],
        other=0.0,
    )
    mean = tl.sum(values.to(tl.float32), 0) / tl.maximum(count, 1).to(tl.float32)
    tl.store(means + ((batch * blocks + block) * heads + head) * D + channels, mean, mask=channels < D)


@triton.jit
def _block_statistics(
    key,
    value,
    sizes,
    mean_key,
    mean_value,
    spread,
    partials,
    length,
    blocks,
    heads,
    key_batch_stride,
    key_token_stride,
    key_head_stride,
    value_batch_stride,
    value_token_stride,
    value_head_stride,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    FIRST_ORDER: tl.constexpr,
    SPREAD: tl.constexpr,
):
    split, splits = tl.program_id(0), tl.num_programs(0)
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // heads, pair % heads
    key += batch * key_batch_stride + head * key_head_stride
    value += batch * value_batch_stride + head * value_head_stride
    tokens = tl.arange(0, TOKENS)
    channels = tl.arange(0, D_PAD)
    inside = channels < D
    part, parts = tl.program_id(2), tl.num_programs(2)
    columns = part * COLUMNS + tl.arange(0, COLUMNS)
    wanted = columns < D
    matrix = tl.zeros((D_PAD, COLUMNS), tl.float32)

    count = _block_length(sizes, batch, split, length, blocks, BLOCK, HAS_SIZES)
    for block in tl.range(split, blocks, splits, num_stages=STAGES):
        keys = key + tl.cast(block, tl.int64) * BLOCK * key_token_stride
        values = value + tl.cast(block, tl.int64) * BLOCK * value_token_stride
        # Products of half types are exact in float32. Those of float32 are not: far from zero, the sum of k v would
        # lose what is left of it less the product of the means, so keys are taken relative to the first of the block.
        origin = tl.zeros((D_PAD,), tl.float32)
        if key.dtype.element_ty == tl.float32:
            origin = tl.load(keys + channels, mask=channels < tl.where(count > 0, D, 0), other=0.0)
        key_sum = tl.zeros((D_PAD,), tl.float32)
        value_sum = tl.zeros((COLUMNS,), tl.float32)
        product = tl.zeros((D_PAD, COLUMNS), tl.float32)
        if not SPREAD:
            product = matrix
        for first in range(0, BLOCK, TOKENS):
            at = (first + tokens)[:, None]
            held = at < count
            k = tl.load(keys + at * key_token_stride + channels[None, :], mask=held & inside[None, :], other=0.0)
            v = tl.load(values + at * value_token_stride + columns[None, :], mask=held & wanted[None, :], other=0.0)
            if key.dtype.element_ty == tl.float32:
                k = tl.where(held, k - origin[None, :], 0.0)
            key_sum += tl.sum(k.to(tl.float32), 0)
            value_sum += tl.sum(v.to(tl.float32), 0)
            product = tl.dot(tl.trans(k), v, product, input_precision="ieee")
        number = tl.maximum(count, 1).to(tl.float32)
        value_mean = value_sum / number
        product -= key_sum[:, None] * value_mean[None, :]
        at = ((batch * blocks + block) * heads + head) * D
        tl.store(mean_key + at + channels, origin + key_sum / number, mask=channels < tl.where(part == 0, D, 0))
        tl.store(mean_value + at + columns, value_mean, mask=wanted)
        if SPREAD:
            squares = tl.sum(product * product)
            if COLUMNS == D_PAD:
                squares = tl.sqrt(squares)
            tl.store(spread + (pair * blocks + block) * parts + part, squares)
            matrix += product
        else:
            matrix = product
        count = _block_length(sizes, batch, block + splits, length, blocks, BLOCK, HAS_SIZES)

    if FIRST_ORDER:
        tl.store(
            partials + (pair * splits + split) * D * D + channels[:, None] * D + columns[None, :],
            matrix,
            mask=inside[:, None] & wanted[None, :],
        )


@triton.jit
def _finish_first_order(
    partials,
    sizes,
    first_order,
    length,
    blocks,
    heads,
    splits,
    elements,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    HAS_SIZES: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    lanes = tl.arange(0, LANES)
    at = tl.program_id(0) * LANES + lanes
    inside = at < elements
    total = tl.zeros((LANES,), tl.float32)
    for split in range(splits):
        total += tl.load(partials + (pair * splits + split) * elements + at, mask=inside, other=0.0)
    tokens = length
    if HAS_SIZES:
        counts = tl.zeros((LANES,), tl.int32)
        for first in range(0, blocks, LANES):
            counts += _block_length(sizes, pair // heads, first + lanes, length, blocks, BLOCK, HAS_SIZES)
        tokens = tl.sum(counts)
    tl.store(first_order + pair * elements + at, total / tl.maximum(tokens, 1).to(tl.float32), mask=inside)


def block_means(x: Tensor, block_size: int, sizes: Tensor | None) -> Tensor:
    batch, length, heads, size = x.shape
    number = blocks.number_of_blocks(length, block_size)
    means = torch.empty(batch, number, heads, size, dtype=torch.float32, device=x.device)
    if means.numel() == 0:
        return means
    x = _with_contiguous_channels(x)
    padded = _padded(size)
    with on_device(x):
        _block_means[(number, batch * heads)](
            x,
            x if sizes is None else sizes.contiguous(),
            means,
            length,
            number,
            heads,
            *x.stride()[:3],
            BLOCK=block_size,
            D=size,
            D_PAD=padded,
            HAS_SIZES=sizes is not None,
            num_warps=4 if block_size * padded <= 8192 else 8,
            enable_fp_fusion=False,
        )
    return means


def block_statistics(
    key: Tensor, value: Tensor, block_size: int, sizes: Tensor | None, first_order: bool, spread: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    batch, length, heads, size = key.shape
    number = blocks.number_of_blocks(length, block_size)
    splits = min(triton.cdiv(number, BLOCKS_PER_SPLIT), MAX_SPLITS)
    padded = _padded(size)
    columns = min(COLUMNS[key.dtype], padded)
    if spread and block_size >= SPREAD_TOKENS:
        columns = min(columns, SPREAD_COLUMNS)
    parts = padded // columns

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=key.device)

    mean_key, mean_value = new(batch, number, heads, size), new(batch, number, heads, size)
    matrix = new(batch, heads, size, size)
    norms = new(batch, heads, number, *([parts] if parts > 1 else []))
    if mean_key.numel() == 0:
        return (
            mean_key,
            mean_value,
            matrix.zero_() if first_order else None,
            new(batch, heads, number) if spread else None,
        )
    partials = new(batch, heads, splits, size, size) if first_order else matrix
    key, value = _with_contiguous_channels(key), _with_contiguous_channels(value)
    held = key if sizes is None else sizes.contiguous()
    with on_device(key):
        _block_statistics[(splits, batch * heads, parts)](
            key,
            value,
            held,
            mean_key,
            mean_value,
            norms,
            partials,
            length,
            number,
            heads,
            *key.stride()[:3],
            *value.stride()[:3],
            BLOCK=block_size,
            TOKENS=min(block_size, TOKENS[key.dtype]),
            COLUMNS=columns,
            D=size,
            D_PAD=padded,
            STAGES=STAGES,
            HAS_SIZES=sizes is not None,
            FIRST_ORDER=first_order,
            SPREAD=spread,
            num_warps=4 if padded == 64 else 8,
            enable_fp_fusion=True,
        )
        if first_order:
            _finish_first_order[(triton.cdiv(size * size, LANES), batch * heads)](
                partials,
                held,
                matrix,
                length,
                number,
                heads,
                splits,
                size * size,
                BLOCK=block_size,
                LANES=LANES,
                HAS_SIZES=sizes is not None,
                num_warps=4,
                enable_fp_fusion=False,
            )
    if spread and parts > 1:
        norms = norms.sum(dim=3).sqrt_()
    return mean_key, mean_value, matrix if first_order else None, norms if spread else None


def _with_contiguous_channels(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def _padded(size: int) -> int:
    return 64 if size <= 64 else 128
