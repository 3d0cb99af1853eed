"""What is known of a block of keys and values without looking at its tokens again.

PISA (arXiv 2602.01077) attends to most blocks through their mean key, their mean value and one matrix for each head
that says how values go with keys inside blocks. That matrix is summed over blocks as it arises, so that the matrix of
a single block is never stored.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from accel.kernels import blocks, checks
from accel.kernels.forms import implementation, without_autocast

__all__ = ["BlockStatistics", "block_means", "block_statistics"]


class BlockStatistics(NamedTuple):
    """The statistics of all blocks; see `block_statistics` for shapes and formulas."""

    mean_key: Tensor
    mean_value: Tensor
    first_order: Tensor | None
    spread: Tensor | None


def block_means(x: Tensor, block_size: int = 64, sizes: Tensor | None = None) -> Tensor:
    """The mean over the tokens of each block: float32 of shape (batch, blocks, heads, head size).

    For inference: no gradient is defined.

    Args:
        x: (batch, tokens, heads, head size) in float16, bfloat16 or float32 (float64 in the reference form, which then
            answers in float64), strided as it likes; head sizes are multiples of 8 up to 128.
        block_size: tokens in a block: 16, 32, 64 or 128. The last block may be short.
        sizes: int32 (batch, blocks), how many tokens at the start of each block count. The others may hold anything,
            infinities and NaN included. None: all tokens there are.

    Returns:
        Means accumulated in float32; zeros for a block of size 0.

    Raises:
        ValueError: a shape, device, block size or head size does not fit, or the forced form cannot run there.
        TypeError: a dtype does not fit.
    """
    checks.require_floats("block_means", x=x)
    blocks.require_block_size("block_means", block_size)
    blocks.require_sequences("block_means", x=x)
    blocks.require_sizes("block_means", sizes, x, block_size)
    return _block_means(x, block_size, sizes)


def block_statistics(
    key: Tensor,
    value: Tensor,
    block_size: int = 64,
    sizes: Tensor | None = None,
    *,
    first_order: bool = True,
    spread: bool = False,
) -> BlockStatistics:
    """Means of keys and values by block, and how values go with keys inside blocks.

    PISA, arXiv 2602.01077, the expansion of exp(q.k) about a block's mean key: with n running over the tokens of block
    j, H_j = sum_n (k_n - mean_key_j)^T v_n. Half types are multiplied exactly and accumulated in float32. The order of
    every sum is decided by the shapes: the same call gives the same bits. For inference: no gradient is defined.

    Args:
        key: (batch, tokens, heads, head size) in float16, bfloat16 or float32 (float64 in the reference form, which
            then answers in float64), strided as it likes; head sizes are multiples of 8 up to 128.
        value: likewise, with key's shape, dtype and device.
        block_size: tokens in a block: 16, 32, 64 or 128. The last block may be short.
        sizes: int32 (batch, blocks), how many tokens at the start of each block count. The others may hold anything,
            infinities and NaN included. None: all tokens there are.
        first_order: whether to compute `first_order`, the mean over tokens that PISA's hybrid uses for every block.
        spread: whether to compute `spread`, which PISA's covariance-aware routing adds (as a logarithm) to scores.

    Returns:
        `mean_key` and `mean_value`, float32 (batch, blocks, heads, head size), zeros for a block of size 0;
        `first_order`, float32 (batch, heads, head size of key, head size of value): the sum of H_j over all blocks,
        divided by the number of tokens that count (zeros if there are none), or None;
        `spread`, float32 (batch, heads, blocks): the Frobenius norm of each H_j, or None.

    Raises:
        ValueError: a shape, device, block size or head size does not fit, or the forced form cannot run there.
        TypeError: a dtype does not fit.
    """
    checks.require_floats("block_statistics", key=key, value=value)
    checks.require_same_place("block_statistics", key=key, value=value)
    checks.require_same_dtype("block_statistics", key=key, value=value)
    blocks.require_block_size("block_statistics", block_size)
    blocks.require_sequences("block_statistics", key=key)
    blocks.require_sizes("block_statistics", sizes, key, block_size)
    if not (first_order or spread):
        return BlockStatistics(_block_means(key, block_size, sizes), _block_means(value, block_size, sizes), None, None)
    mean_key, mean_value, matrix, norms = _block_statistics(key, value, block_size, sizes, first_order, spread)
    return BlockStatistics(mean_key, mean_value, matrix if first_order else None, norms if spread else None)


@torch.library.custom_op("accel::block_means", mutates_args=())
@without_autocast
def _block_means(x: Tensor, block_size: int, sizes: Tensor | None) -> Tensor:
    return implementation(__name__, x).block_means(x, block_size, sizes)


@_block_means.register_fake
def _(x: Tensor, block_size: int, sizes: Tensor | None) -> Tensor:
    batch, length, heads, size = x.shape
    return _wide(x, batch, blocks.number_of_blocks(length, block_size), heads, size)


@torch.library.custom_op("accel::block_statistics", mutates_args=())
@without_autocast
def _block_statistics(
    key: Tensor, value: Tensor, block_size: int, sizes: Tensor | None, first_order: bool, spread: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    form = implementation(__name__, key)
    mean_key, mean_value, matrix, norms = form.block_statistics(key, value, block_size, sizes, first_order, spread)
    # An operation cannot answer None: what was not asked for is empty here, and None outside.
    return (
        mean_key,
        mean_value,
        mean_key.new_empty(0) if matrix is None else matrix,
        mean_key.new_empty(0) if norms is None else norms,
    )


@_block_statistics.register_fake
def _(
    key: Tensor, value: Tensor, block_size: int, sizes: Tensor | None, first_order: bool, spread: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, heads, size = key.shape
    number = blocks.number_of_blocks(length, block_size)
    return (
        _wide(key, batch, number, heads, size),
        _wide(key, batch, number, heads, size),
        _wide(key, batch, heads, size, size) if first_order else _wide(key, 0),
        _wide(key, batch, heads, number) if spread else _wide(key, 0),
    )


def _wide(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.promote_types(like.dtype, torch.float32))
