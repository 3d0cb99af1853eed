"""Lists of chosen blocks as bits, one for each pair of blocks: the form in which a choice is kept for many steps.

A list of int32 takes 32 bits for each block of a row that is chosen; a row of bits takes one for each that there is,
which is less from a density of 1/32 on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.blocks import listed_blocks

__all__ = ["lists_of", "to_bits"]


def to_bits(blocks: Tensor, counts: Tensor, number: int) -> Tensor:
    """Lists as `accel.kernels.selection` makes them, as bits.

    Args:
        blocks: int32 (B, H, NQ, K), block ids below `number`, distinct in each row.
        counts: int32 (B, H, NQ), how many at the start of each row count.
        number: N, how many blocks there are.

    Returns:
        uint8 (B, H, NQ, ceil(N / 8)); block n is bit n % 8 of byte n // 8.
    """
    marks = torch.nn.functional.pad(listed_blocks(blocks, counts, number).to(torch.uint8), (0, -number % 8))
    return (marks.unflatten(-1, (-1, 8)) << _places(marks)).sum(-1, dtype=torch.uint8)


def lists_of(bits: Tensor, width: int, number: int) -> tuple[Tensor, Tensor]:
    """The lists again, for `accel.kernels.block_attention`.

    Args:
        bits: what `to_bits` gave.
        width: K of the result, at least the longest row.
        number: N, as in `to_bits`.

    Returns:
        blocks: int32 (B, H, NQ, K). A row's blocks ascend and stand first; behind them stand valid ids without meaning.
        counts: int32 (B, H, NQ).
    """
    marks = ((bits[..., None] >> _places(bits)) & 1).flatten(-2)[..., :number]
    # The k-th block of a row is where the number of blocks so far reaches k.
    so_far = marks.cumsum(-1, dtype=torch.int32)
    wanted = torch.arange(1, width + 1, dtype=torch.int32, device=bits.device).expand(*bits.shape[:-1], -1)
    blocks = torch.searchsorted(so_far, wanted.contiguous(), out_int32=True)
    return blocks.clamp_(max=number - 1), so_far[..., -1].contiguous()


def _places(beside: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=beside.device)
