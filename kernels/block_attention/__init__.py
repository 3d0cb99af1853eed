"""Attention over chosen blocks of keys, with an approximation of the others and what was computed before.

One forward serves several methods. PISA (arXiv 2602.01077): the blocks of a list are exact, every other block is one
virtual token at its mean, and with the shared first-order term the numerator follows the keys inside blocks. AdaSpa
(arXiv 2502.21079): the list alone. A prior result over other keys is one more part of the same softmax.
"""

import torch
from torch import Tensor

from accel.kernels import blocks as cut
from accel.kernels import checks
from accel.kernels.forms import implementation, without_autocast

__all__ = ["block_attention", "dense_attention"]


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    counts: Tensor,
    *,
    block_size: int = 64,
    sizes: Tensor | None = None,
    mean_key: Tensor | None = None,
    mean_value: Tensor | None = None,
    first_order: Tensor | None = None,
    prior: Tensor | None = None,
    prior_lse: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of each query block over its list of key blocks, and what the other arguments add to the softmax.

    With S the tokens of the listed blocks, U the blocks of size n_j > 0 that are not listed, and c the scale, the
    numerator and the denominator of a query q are (PISA, arXiv 2602.01077, the piecewise form; hybrid with
    `first_order`)

        sum_S exp(c q.k) v  +  sum_U n_j exp(c q.mean_key_j) mean_value_j  +  c g q first_order  +  exp(prior_lse) prior
        sum_S exp(c q.k)    +  g                                                                 +  exp(prior_lse)

    with g = sum_U n_j exp(c q.mean_key_j). What is not given is left out. Products of half types are accumulated in
    float32, products of float32 are not shortened. The same call gives the same bits. For inference: no gradient is
    defined.

    Args:
        query: (B, S, H, D) in float16, bfloat16 or float32 (float64 in the reference form), strided as it likes; D is
            a multiple of 8 up to 128. Cut into NQ blocks of `block_size` tokens, the last may be short.
        key: (B, S_k, H_k, D), cut into N blocks likewise; H is a multiple of H_k, and head h of the query uses head
            h // (H // H_k).
        value: as key.
        blocks: int32 (B, H, NQ, K), the key blocks that each query block attends exactly, from 0 to N - 1 and distinct,
            in any order. The reference and the CPU form refuse a block that is listed twice; the Triton form, which
            would have to wait for the device, does not look, and counts it twice.
        counts: int32 (B, H, NQ), how many entries at the start of each list count, from 0 to K.
        block_size: tokens in a block: 16, 32, 64 or 128.
        sizes: int32 (B, N), how many keys at the start of each block count; the others may hold anything, infinities
            and NaN included. A block of size 0 does not exist, listed or not. None: all keys there are.
        mean_key: float32 (B, N, H_k, D), the mean key of each block (`block_statistics`); given with mean_value.
        mean_value: likewise.
        first_order: float32 (B, H_k, D, D), as in `BlockStatistics.first_order`; needs the means.
        prior: (B, S, H, D) in query's dtype or float32, the result of attention over other keys; given with prior_lse.
        prior_lse: float32 (B, H, S), its log-sum-exp; minus infinity where there is no prior result.
        scale: what scores are multiplied by, above 0; 1/sqrt(D) when None.

    Returns:
        The output, (B, S, H, D), contiguous, in query's dtype, and the natural logarithm of the denominator, float32
        of shape (B, H, S). A query with nothing to attend to gets zeros and minus infinity.

    Raises:
        ValueError: a shape, device, block size, head size or scale does not fit, a block is listed twice (but see
            `blocks`), or the forced form cannot run there.
        TypeError: a dtype does not fit.
    """
    name = "block_attention"
    scale = _check_sequences(name, query, key, value, block_size, sizes, scale)
    batch, length, heads, head_size = query.shape
    rows = (batch, heads, cut.number_of_blocks(length, block_size))
    for argument, tensor in (("blocks", blocks), ("counts", counts)):
        if tensor.dtype != torch.int32:
            raise TypeError(f"{name} takes {argument} as int32: it is {checks.plain(tensor.dtype)}")
    cut.require_shape(name, query, rows, counts=counts)
    cut.require_shape(name, query, (*rows, blocks.shape[-1] if blocks.ndim else 0), blocks=blocks)
    means = (batch, cut.number_of_blocks(key.shape[1], block_size), key.shape[2], head_size)
    _check_pair(name, mean_key=mean_key, mean_value=mean_value)
    _check_pair(name, prior=prior, prior_lse=prior_lse)
    if first_order is not None and mean_key is None:
        raise ValueError(f"{name} takes first_order with mean_key and mean_value: give those too")
    wide = torch.promote_types(query.dtype, torch.float32)
    _check_optional(name, query, means, (wide,), mean_key=mean_key, mean_value=mean_value)
    _check_optional(name, query, (batch, key.shape[2], head_size, head_size), (wide,), first_order=first_order)
    _check_optional(name, query, tuple(query.shape), (query.dtype, wide), prior=prior)
    _check_optional(name, query, (batch, heads, length), (wide,), prior_lse=prior_lse)
    return _block_attention(
        query,
        key,
        value,
        blocks,
        counts,
        block_size,
        sizes,
        mean_key,
        mean_value,
        first_order,
        prior,
        prior_lse,
        scale,
    )


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sizes: Tensor | None = None,
    block_size: int = 64,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of every query over all keys, with its log-sum-exp: `block_attention` with full lists.

    Args:
        query: as in `block_attention`, like the other arguments.
        key: likewise.
        value: likewise.
        sizes: likewise.
        block_size: likewise; it says what `sizes` counts.
        scale: likewise.

    Returns:
        As `block_attention`.

    Raises:
        ValueError: a shape, device, block size, head size or scale does not fit, or the forced form cannot run there.
        TypeError: a dtype does not fit.
    """
    scale = _check_sequences("dense_attention", query, key, value, block_size, sizes, scale)
    return _dense_attention(query, key, value, sizes, block_size, scale)


def _check_sequences(
    name: str, query: Tensor, key: Tensor, value: Tensor, block_size: int, sizes: Tensor | None, scale: float | None
) -> float:
    checks.require_floats(name, query=query, key=key, value=value)
    checks.require_same_dtype(name, query=query, key=key, value=value)
    checks.require_same_place(name, key=key, value=value)
    cut.require_block_size(name, block_size)
    cut.require_sequences(name, query=query, key=key)
    cut.require_grouped_heads(name, query, key)
    if not query.numel() or not key.numel():
        raise ValueError(
            f"{name} takes sequences of one token or more: query has shape {tuple(query.shape)}, "
            f"key has shape {tuple(key.shape)}"
        )
    cut.require_sizes(name, sizes, key, block_size)
    if scale is not None and not scale > 0:
        raise ValueError(f"{name} takes a scale above 0: it is {scale}")
    return cut.resolved_scale(scale, query.shape[-1])


def _check_pair(name: str, **pair: Tensor | None) -> None:
    (first, one), (second, other) = pair.items()
    if (one is None) != (other is None):
        raise ValueError(f"{name} takes {first} and {second} together: {first if one is None else second} is missing")


def _check_optional(
    name: str, beside: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], **tensors: Tensor | None
) -> None:
    for argument, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in dtypes:
            wanted = " or ".join(dict.fromkeys(checks.plain(dtype) for dtype in dtypes))
            raise TypeError(f"{name} takes {argument} as {wanted}: it is {checks.plain(tensor.dtype)}")
        cut.require_shape(name, beside, shape, **{argument: tensor})


@torch.library.custom_op("accel::block_attention", mutates_args=())
@without_autocast
def _block_attention(
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
    return implementation(__name__, query).block_attention(
        query,
        key,
        value,
        blocks,
        counts,
        block_size,
        sizes,
        mean_key,
        mean_value,
        first_order,
        prior,
        prior_lse,
        scale,
    )


@_block_attention.register_fake
def _(query: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return _results(query)


@torch.library.custom_op("accel::dense_attention", mutates_args=())
@without_autocast
def _dense_attention(
    query: Tensor, key: Tensor, value: Tensor, sizes: Tensor | None, block_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    return implementation(__name__, query).dense_attention(query, key, value, sizes, block_size, scale)


@_dense_attention.register_fake
def _(query: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return _results(query)


def _results(query: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = query.shape
    lse = query.new_empty((batch, heads, length), dtype=torch.promote_types(query.dtype, torch.float32))
    return query.new_empty(query.shape), lse
