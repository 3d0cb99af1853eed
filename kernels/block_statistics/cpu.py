"""Block statistics on a CPU: reductions over whole blocks, and one product for each head and group of blocks."""

from itertools import pairwise

import torch
from torch import Tensor

from accel.kernels import blocks

# Tokens whose centred keys are held at a time: a longer product is no faster, and less of it stays in the cache.
_TOKENS = 1024


def block_means(x: Tensor, block_size: int, sizes: Tensor | None) -> Tensor:
    batch, length, _, _ = x.shape
    return _means(x, block_size, blocks.token_counts(sizes, batch, length, block_size, x.device))


def block_statistics(
    key: Tensor, value: Tensor, block_size: int, sizes: Tensor | None, first_order: bool, spread: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    batch, length, heads, size = key.shape
    counts = blocks.token_counts(sizes, batch, length, block_size, key.device)
    mean_key, mean_value = _means(key, block_size, counts), _means(value, block_size, counts)
    matrix = mean_key.new_zeros(batch, heads, size, size)
    norms = mean_key.new_zeros(batch, heads, counts.shape[1])
    # The norm wants the matrix of one block at a time; without it a group of blocks is one product.
    group = block_size if spread else max(_TOKENS, block_size)
    whole = length // block_size * block_size
    edges = [*range(0, whole, group), *{whole, length}]
    for element in range(batch):
        for start, end in pairwise(sorted(edges)):
            first, last = start // block_size, -(-end // block_size)
            # The mean of the values changes nothing but the rounding: it would multiply a sum that is zero.
            keys, values = (
                _centred(x[element, start:end], means[element, first:last])
                for x, means in ((key, mean_key), (value, mean_value))
            )
            held = counts[element, first:last]
            if int(held.sum()) < end - start:
                valid = blocks.token_mask(held[None], end - start, block_size)[0, :, None, None]
                keys, values = torch.where(valid, keys, 0.0), torch.where(valid, values, 0.0)
            factors = keys.permute(1, 2, 0), values.transpose(0, 1)
            if spread:
                product = torch.bmm(*factors)
                norms[element, :, first] = torch.linalg.vector_norm(product, dim=(1, 2))
                matrix[element] += product
            else:
                matrix[element].baddbmm_(*factors)
    tokens = counts.sum(dim=1).clamp(min=1)[:, None, None, None]
    return (
        mean_key,
        mean_value,
        matrix.div_(tokens) if first_order else None,
        norms if spread else None,
    )


def _centred(x: Tensor, means: Tensor) -> Tensor:
    """x (tokens, heads, head size) in float32, less the mean of each block: all blocks are of one length."""
    return x.unflatten(0, (len(means), -1)).sub(means[:, None]).flatten(0, 1)


def _means(x: Tensor, block_size: int, counts: Tensor) -> Tensor:
    batch, length, heads, size = x.shape
    means = x.new_empty((batch, counts.shape[1], heads, size), dtype=torch.float32)
    whole = length // block_size
    means[:, :whole] = x[:, : whole * block_size].unflatten(1, (whole, block_size)).mean(dim=2, dtype=torch.float32)
    # What padding did to its own block is overwritten; the other blocks have not seen it.
    for element, block in (counts < block_size).nonzero().tolist():
        start = block * block_size
        count = int(counts[element, block])
        means[element, block] = x[element, start : start + count].mean(dim=0, dtype=torch.float32) if count else 0.0
    return means
