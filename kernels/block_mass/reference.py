"""Block mass in plain PyTorch: the specification that the other forms are tested against."""

import torch
from torch import Tensor

from accel.kernels import blocks

# exp of the largest exponent: far above any share of attention, far below where a sum of float32 overflows.
LIMIT = 30.0


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
    batch, queries, _, _ = query.shape
    keys = key.shape[1]
    counts = blocks.token_counts(sizes, batch, keys, block_size, key.device)
    rows = blocks.token_counts(query_sizes, batch, queries, block_size, query.device)
    valid_key = blocks.token_mask(counts, keys, block_size)[:, None, None]
    valid_query = blocks.token_mask(rows, queries, block_size)[:, None, :, None]

    shares = torch.where(valid_query & valid_key, _shares(query, key, lse, scale), 0.0)
    mass = _by_block(_by_block(shares, block_size).transpose(2, 3), block_size).transpose(2, 3).contiguous()
    if mean_key is None:
        return mass, None
    exists = (counts > 0)[:, None, None]
    tails = torch.where(valid_query & exists, _shares(query, mean_key, lse, scale), 0.0) * counts[:, None, None]
    return mass, _by_block(tails.transpose(2, 3), block_size).transpose(2, 3).contiguous()


def _shares(query: Tensor, key: Tensor, lse: Tensor, scale: float) -> Tensor:
    """exp(scale q.k - lse) of shape (batch, heads, queries, keys)."""
    wide = lse.dtype
    repeated = key.to(wide).repeat_interleave(query.shape[2] // max(key.shape[2], 1), dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", query.to(wide), repeated) * scale
    return (scores - lse[..., None]).clamp(max=LIMIT).exp()


def _by_block(x: Tensor, block_size: int) -> Tensor:
    """Sums over blocks of the last axis."""
    number = blocks.number_of_blocks(x.shape[-1], block_size)
    padded = torch.nn.functional.pad(x, (0, number * block_size - x.shape[-1]))
    return padded.unflatten(-1, (number, block_size)).sum(-1)
