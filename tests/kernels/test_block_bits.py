"""Lists of blocks as bits and back."""

from __future__ import annotations

import pytest
import torch

from accel.kernels.block_bits import lists_of, to_bits
from accel.kernels.selection import threshold_blocks, top_blocks


@pytest.mark.parametrize("number", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("text", [False, True], ids=["image", "text"])
def test_lists_come_back_as_they_were(number: int, text: bool) -> None:
    scores = torch.randn(2, 3, 5, number, generator=torch.Generator().manual_seed(number))
    always = torch.arange(number) >= number - 1 if text else None
    sizes = torch.full((2, number), 16, dtype=torch.int32)
    sizes[1, : number // 2] = 0
    for blocks, counts in (
        top_blocks(scores, torch.tensor([0, 3, number]), always=always, sizes=sizes),
        top_blocks(scores, 2, always=always, sizes=sizes, width=number),
        threshold_blocks(scores, 0.5, always=always, sizes=sizes),
    ):
        bits = to_bits(blocks, counts, number)
        assert bits.dtype == torch.uint8 and bits.shape == (2, 3, 5, -(-number // 8))
        back = lists_of(bits, blocks.shape[-1], number)
        assert [part.dtype for part in back] == [torch.int32] * 2 and all(part.is_contiguous() for part in back)
        assert torch.equal(back[0], blocks) and torch.equal(back[1], counts)


def test_which_bit_is_which_block() -> None:
    blocks = torch.tensor([[1, 8, 9], [7, 0, 0]], dtype=torch.int32)[None, None]
    counts = torch.tensor([[[3, 1]]], dtype=torch.int32)
    assert to_bits(blocks, counts, 10).tolist() == [[[[0b10, 0b11], [0b10000000, 0]]]]
