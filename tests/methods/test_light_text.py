"""Text whose padding is not hidden but weighs less, as Chroma's: in blocks as by diffusers, whole and in parts."""

from __future__ import annotations

import pytest
import torch

from accel.kernels.arrangement import Arrangement
from accel.kernels.selection import other_blocks
from accel.methods.sparse_call import NotInBlocks, SparseCall, put_into_blocks, text_lengths
from accel.pipelines.attention import AttentionCall
from tests.sparse_calls import moment as at
from tests.sparse_calls import some_blocks

WORDS, IMAGE, BLOCK = 70, 132, 32
COUNTING = torch.cat([torch.arange(WORDS) < torch.tensor([[3], [40], [70]]), torch.ones(3, IMAGE).bool()], 1).float()


def call(counting: torch.Tensor = COUNTING) -> AttentionCall:
    mask = counting[:, None, None, :] * counting[:, None, :, None]
    return AttentionCall("prefix", WORDS, mask, dispatched=False, counting=counting)


def tensors(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(3, batch, WORDS + IMAGE, 2, 16, generator=generator)
    return query, key, value


def in_blocks(
    told: AttentionCall, parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> tuple[SparseCall, Arrangement]:
    lengths = text_lengths(told, WORDS + IMAGE)
    arrangement, found = put_into_blocks(at(), 0, parts, told, lengths, BLOCK, tiling=True)
    return found, arrangement


def test_every_query_gets_what_diffusers_gives_it() -> None:
    """Those of the padding too, for which nothing weighs less."""
    told, parts = call(), tensors(3)
    found, arrangement = in_blocks(told, parts)
    everything, _ = found.dense(slice(0, found.query.shape[1]))
    expected = told.dense(*parts)
    torch.testing.assert_close(arrangement.restore(everything), expected, rtol=1e-5, atol=1e-5)
    plain = AttentionCall("prefix", WORDS, None, dispatched=False).dense(*parts)
    assert (plain[:2] - expected[:2]).norm() > 0.01 * expected[:2].norm(), "the mask matters"


def test_parts_of_the_image_queries_are_one_softmax() -> None:
    """Chosen blocks that go on from the others: what weighs less is in it once."""
    told, parts = call(COUNTING[:1]), tensors(1)
    found, _ = in_blocks(told, parts)
    whole, total = found.dense(found.rows(found.image))
    chosen = some_blocks(found, 0.5)
    rest, rest_lse = found.over_rest(other_blocks(*chosen, found.sizes.shape[1]))
    out, lse = found.over(chosen, prior=rest, prior_lse=rest_lse)
    torch.testing.assert_close(out, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, total, rtol=1e-5, atol=1e-5)


def test_other_masks_are_refused() -> None:
    half = COUNTING.clone()
    half[0, 0] = 0.5
    with pytest.raises(NotInBlocks, match="other numbers than one and zero"):
        text_lengths(call(half), WORDS + IMAGE)
    inside = COUNTING.clone()
    inside[2, 5] = 0
    with pytest.raises(NotInBlocks, match="more than the padding"):
        text_lengths(call(inside), WORDS + IMAGE)
    with pytest.raises(NotInBlocks, match="not the padding of a text before the image"):
        text_lengths(call(COUNTING.bool()), WORDS + IMAGE)
