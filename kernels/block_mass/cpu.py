"""Block mass on a CPU: a tile of scores at a time, small enough to stay in the cache while it becomes sums."""

import math

import torch
from torch import Tensor

from accel.kernels import blocks
from accel.kernels.block_mass.reference import LIMIT

# Queries and keys of a tile: half a megabyte of scores.
_ROWS = 256
_COLUMNS = 512
_LOG2_E = math.log2(math.e)


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
    batch, queries, heads, _ = query.shape
    counts = blocks.token_counts(sizes, batch, key.shape[1], block_size, key.device)
    rows = blocks.token_counts(query_sizes, batch, queries, block_size, query.device)
    mass = query.new_empty((batch, heads, rows.shape[1], counts.shape[1]), dtype=torch.float32)
    tail_mass = None if mean_key is None else torch.empty_like(mass)
    if mass.numel() == 0:
        return mass, tail_mass
    group = heads // key.shape[2]
    padded_rows, padded_columns = (
        ~blocks.token_mask(held, held.shape[1] * block_size, block_size) for held in (rows, counts)
    )
    for element in range(batch):
        for head in range(heads):
            if head % group == 0:
                keys = _whole_blocks(key[element, :, head // group], block_size)
            # exp2 is much the faster exponential: what goes into it is scaled here, once.
            scaled = _whole_blocks(query[element, :, head], block_size) * (scale * _LOG2_E)
            levels = _whole_blocks(lse[element, head, :, None], block_size) * _LOG2_E
            row_padding = padded_rows[element, :, None]
            padding = padded_columns[element]
            _add_up(mass[element, head], scaled, keys, levels, row_padding, padding, block_size, block_size)
            if mean_key is not None and tail_mass is not None:
                means = mean_key[element, :, head // group]
                absent = counts[element] == 0
                _add_up(tail_mass[element, head], scaled, means, levels, row_padding, absent, block_size, 1)
                tail_mass[element, head] *= counts[element]
    return mass, tail_mass


def _add_up(
    mass: Tensor,
    queries: Tensor,
    keys: Tensor,
    levels: Tensor,
    row_padding: Tensor,
    column_padding: Tensor,
    block_size: int,
    width: int,
) -> None:
    """mass = sums of exp2(queries keys^T - levels) over `block_size` rows and `width` columns, but for the padding."""
    scratch = mass.new_empty(_ROWS * _COLUMNS)
    for top in range(0, len(queries), _ROWS):
        some = slice(top, min(top + _ROWS, len(queries)))
        height = some.stop - some.start
        for left in range(0, len(keys), _COLUMNS):
            right = min(left + _COLUMNS, len(keys))
            tile = scratch[: height * (right - left)].view(height, right - left)
            torch.mm(queries[some], keys[left:right].T, out=tile)
            tile.sub_(levels[some]).clamp_(max=LIMIT * _LOG2_E).exp2_()
            for padding in (row_padding[some], column_padding[left:right]):
                if padding.any():
                    tile.masked_fill_(padding, 0.0)
            sums = tile.unflatten(0, (-1, block_size)).sum(dim=1).unflatten(1, (-1, width)).sum(dim=2)
            mass[top // block_size : some.stop // block_size, left // width : right // width] = sums


def _whole_blocks(x: Tensor, block_size: int) -> Tensor:
    """x (tokens, numbers) in float32, with zeros behind it up to a whole number of blocks."""
    return torch.nn.functional.pad(x.float(), (0, 0, 0, -len(x) % block_size))
