"""Text whose padding a processor hides by itself: cut off in each sample, or masked in rows and columns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from accel.methods.sparse_call import NotInBlocks, put_into_blocks, text_lengths
from accel.pipelines.attention import AttentionCall
from accel.runtime.clock import Moment

GRID, WORDS, BLOCK = (2, 4, 16), 5, 32
IMAGE = 2 * 4 * 16


def call(mask: list[list[int]], cut: bool) -> AttentionCall:
    return AttentionCall("suffix", WORDS, None, dispatched=False, text_mask=torch.tensor(mask), cut=cut)


def tensors(batch: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(batch, IMAGE + WORDS, 2, 64, generator=generator) for _ in range(3))


def test_lengths_are_read_off_the_mask() -> None:
    assert text_lengths(call([[1, 1, 0, 0, 0], [0] * 5, [1] * 5], cut=True), IMAGE + WORDS).tolist() == [2, 0, 5]
    with pytest.raises(NotInBlocks, match="more than the padding"):
        text_lengths(call([[1, 0, 1, 0, 0]], cut=True), IMAGE + WORDS)


@pytest.mark.parametrize("cut", [True, False])
def test_what_counts_sees_what_counts(cut: bool) -> None:
    """Each sample as if it were alone and without padding, by diffusers' way and in blocks."""
    told, (query, key, value) = call([[1, 1, 0, 0, 0], [0] * 5, [1] * 5], cut), tensors(3)
    dense = told.dense(query, key, value)
    lengths = text_lengths(told, IMAGE + WORDS)
    moment = Moment(0, 0, 0, 8, "cond", "transformer", GRID)
    arrangement, blocks = put_into_blocks(moment, 0, (query, key, value), told, lengths, BLOCK, tiling=True)
    everything, _ = blocks.dense(slice(0, blocks.query.shape[1]))
    in_blocks = arrangement.restore(everything)
    for sample, words in enumerate((2, 0, 5)):
        end = IMAGE + words
        alone = F.scaled_dot_product_attention(
            *(x[sample : sample + 1, :end].transpose(1, 2) for x in (query, key, value))
        ).transpose(1, 2)
        for found in (dense, in_blocks):
            torch.testing.assert_close(found[sample : sample + 1, :end], alone, rtol=1e-5, atol=1e-5)
        assert not dense[sample, end:].any(), "padding gets zeros"


def test_masked_and_cut_are_the_same_to_rounding() -> None:
    query, key, value = tensors(2)
    mask = [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    cut, masked = (call(mask, cut).dense(query, key, value) for cut in (True, False))
    torch.testing.assert_close(cut, masked, rtol=1e-5, atol=1e-5)
