"""How much attention each block of queries pays to each block of keys, exactly, without attending.

AdaSpa (arXiv 2502.21079) searches the blocks worth attending to by their exact share of the attention. With the
log-sum-exp of each row at hand (of this step or of an earlier one), that takes one product of queries and keys.
"""

import torch
from torch import Tensor

from accel.kernels import blocks, checks
from accel.kernels.forms import implementation, without_autocast

__all__ = ["block_mass"]


def block_mass(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    block_size: int = 64,
    sizes: Tensor | None = None,
    *,
    query_sizes: Tensor | None = None,
    mean_key: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The attention mass between blocks, and the mass that a piecewise tail would give instead.

    AdaSpa, arXiv 2502.21079, the searched quantity: for block i of queries and block j of keys,
    mass = sum over rows r of i and keys n of j of exp(scale q_r.k_n - lse_r). With a fresh `lse`, the sum over j is the
    number of rows in i. PISA, arXiv 2602.01077, gives a block of n_j keys that it does not attend to the mass
    n_j exp(scale q_r.mean_key_j - lse_r) instead. Exponents are cut off at 30, which only a stale `lse` can reach.
    The order of every sum is decided by the shapes: the same call gives the same bits. For inference: no gradient
    is defined.

    Args:
        query: (batch, query tokens, heads, head size) in float16, bfloat16 or float32 (float64 in the reference form,
            which then answers in float64), strided as it likes; head sizes are multiples of 8 up to 128.
        key: (batch, key tokens, key heads, head size) likewise; the heads of query are a multiple of key's, and head h
            of query goes with head h // (heads // key heads) of key.
        lse: float32 (batch, heads, query tokens), natural logarithm, for the scores with `scale`.
        block_size: tokens in a block: 16, 32, 64 or 128. The last block may be short.
        sizes: int32 (batch, key blocks), how many keys at the start of each block count. The others may hold
            anything, infinities and NaN included. None: all keys there are.
        query_sizes: int32 (batch, query blocks), likewise for queries and their `lse`.
        mean_key: float32 (batch, key blocks, key heads, head size), what `block_means` gives for key; asks for the
            second result.
        scale: what scores are multiplied by; 1/sqrt(head size) if None.

    Returns:
        The mass and the tail's mass (None without `mean_key`), both float32 (batch, heads, query blocks, key blocks).

    Raises:
        ValueError: a shape, device, block size or head size does not fit, or the forced form cannot run there.
        TypeError: a dtype does not fit.
    """
    checks.require_floats("block_mass", query=query, key=key)
    checks.require_same_dtype("block_mass", query=query, key=key)
    blocks.require_block_size("block_mass", block_size)
    blocks.require_sequences("block_mass", query=query, key=key)
    blocks.require_grouped_heads("block_mass", query, key)
    blocks.require_sizes("block_mass", sizes, key, block_size)
    blocks.require_sizes("block_mass", query_sizes, query, block_size, name="query_sizes")
    batch, queries, heads, size = query.shape
    _require_wide(query, lse=lse)
    blocks.require_shape("block_mass", query, (batch, heads, queries), lse=lse)
    if mean_key is not None:
        number = blocks.number_of_blocks(key.shape[1], block_size)
        _require_wide(query, mean_key=mean_key)
        blocks.require_shape("block_mass", query, (batch, number, key.shape[2], size), mean_key=mean_key)
    multiplier = blocks.resolved_scale(scale, size)
    mass, tail_mass = _block_mass(query, key, lse, block_size, sizes, query_sizes, mean_key, multiplier)
    return mass, None if mean_key is None else tail_mass


@torch.library.custom_op("accel::block_mass", mutates_args=())
@without_autocast
def _block_mass(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    block_size: int,
    sizes: Tensor | None,
    query_sizes: Tensor | None,
    mean_key: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    form = implementation(__name__, query)
    mass, tail_mass = form.block_mass(query, key, lse, block_size, sizes, query_sizes, mean_key, scale)
    # An operation cannot answer None: without mean_key the second result is empty here, and None outside.
    return mass, mass.new_empty(0) if tail_mass is None else tail_mass


@_block_mass.register_fake
def _(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    block_size: int,
    sizes: Tensor | None,
    query_sizes: Tensor | None,
    mean_key: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _ = query.shape
    shape = tuple(blocks.number_of_blocks(length, block_size) for length in (queries, key.shape[1]))
    mass = lse.new_empty((batch, heads, *shape))
    return mass, lse.new_empty(0) if mean_key is None else torch.empty_like(mass)


def _require_wide(query: Tensor, **tensors: Tensor) -> None:
    """What was accumulated in float32 must come in float32 (in float64 beside float64)."""
    wide = torch.promote_types(query.dtype, torch.float32)
    for name, tensor in tensors.items():
        if tensor.dtype != wide:
            raise TypeError(f"block_mass takes {name} as {checks.plain(wide)}: {name} is {checks.plain(tensor.dtype)}")
