"""Selection of blocks against plain sorting, counts and ties."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from accel.kernels.selection import (
    head_budgets,
    head_recalls,
    kept_number,
    other_blocks,
    threshold_blocks,
    top_blocks,
)


def rows(blocks: Tensor, counts: Tensor) -> list[list[int]]:
    """The chosen blocks of every row, after checks that hold for every choice."""
    assert blocks.dtype == counts.dtype == torch.int32
    assert blocks.shape[:-1] == counts.shape
    flat = [row[:count].tolist() for row, count in zip(blocks.flatten(0, 2), counts.flatten().tolist(), strict=True)]
    assert all(row == sorted(set(row)) for row in flat), "ascending and distinct"
    return flat


def expected(scores: Tensor, keep: list[int], always: set[int], empty: set[int]) -> list[list[int]]:
    found = []
    for row, number in zip(scores.flatten(0, 2).tolist(), keep, strict=True):
        ids = [n for n in range(len(row)) if n not in empty]
        ids.sort(key=lambda n: (n not in always, -row[n], n))
        found.append(sorted(ids[: max(number, len(always - empty))]))
    return found


def random_scores(batch: int, heads: int, queries: int, blocks: int, *, levels: int = 6) -> Tensor:
    """Whole numbers from a few, so that ties are everywhere."""
    generator = torch.Generator().manual_seed(batch * 1000 + heads * 100 + queries * 10 + blocks)
    return torch.randint(-levels, levels, (batch, heads, queries, blocks), generator=generator).float()


@pytest.mark.parametrize("blocks", [1, 2, 7, 33])
@pytest.mark.parametrize("keep", [0, 1, 3, 40])
def test_top_blocks_are_those_of_sorting(blocks: int, keep: int) -> None:
    scores = random_scores(2, 3, 4, blocks)
    for always in (set(), {0}, {0, blocks - 1}):
        for empty in (set(), {blocks // 2}, {0}):
            sizes = torch.tensor([0 if n in empty else 5 for n in range(blocks)], dtype=torch.int32)
            mask = torch.tensor([n in always for n in range(blocks)])
            chosen = top_blocks(
                scores,
                keep,
                always=mask if always else None,
                sizes=sizes.expand(2, -1) if empty else None,
            )
            assert rows(*chosen) == expected(scores, [keep] * 24, always, empty)
            assert chosen[0].shape[-1] == max(map(len, rows(*chosen)), default=0) or not always


def test_a_budget_for_every_head_and_sample() -> None:
    scores = random_scores(2, 3, 4, 9)
    per_head = torch.tensor([1, 9, 4])
    wanted = ([1] * 4 + [9] * 4 + [4] * 4) * 2
    assert rows(*top_blocks(scores, per_head)) == expected(scores, wanted, set(), set())
    per_sample = torch.tensor([[1, 2, 3], [4, 5, 6]])
    blocks, counts = top_blocks(scores, per_sample, always=torch.tensor([True] * 2 + [False] * 7))
    assert counts[:, :, 0].tolist() == [[2, 2, 3], [4, 5, 6]]
    assert bool(((blocks == 0) | (blocks == 1)).any(-1).all())


def test_samples_differ_in_their_blocks() -> None:
    scores = random_scores(2, 1, 3, 5)
    sizes = torch.tensor([[4, 4, 4, 0, 0], [4, 4, 4, 4, 1]], dtype=torch.int32)
    always = torch.tensor([[True, False, False, True, False], [False] * 4 + [True]])
    blocks, counts = top_blocks(scores, 4, always=always, sizes=sizes)
    assert counts[:, 0].tolist() == [[3] * 3, [4] * 3]
    found = rows(blocks, counts)
    assert found[:3] == [[0, 1, 2]] * 3
    assert all(4 in row for row in found[3:])


def test_what_stands_behind_a_row_is_a_valid_id() -> None:
    blocks, counts = top_blocks(random_scores(1, 2, 5, 6), torch.tensor([1, 6]))
    assert blocks.shape[-1] == 6
    assert counts[0, :, 0].tolist() == [1, 6]
    assert int(blocks.min()) >= 0
    assert int(blocks.max()) < 6


def test_width_takes_the_lowest_away_and_keeps_the_required() -> None:
    scores = torch.tensor([0.0, 5, 4, 3, 2, 1])[None, None, None]
    always = torch.tensor([True] + [False] * 5)
    assert rows(*top_blocks(scores, 4, always=always, width=2)) == [[0, 1]]
    blocks, counts = top_blocks(scores, 2, width=5)
    assert blocks.shape[-1] == 5
    assert rows(blocks, counts) == [[1, 2]]
    assert top_blocks(scores, 3, width=99)[0].shape[-1] == 6


def test_ties_and_unusual_scores() -> None:
    nan, inf = math.nan, math.inf
    scores = torch.tensor([1.0, 1.0, 0.0, -0.0, nan, inf, -inf, -1e-45])[None, None, None]
    order = [4, 5, 0, 1, 2, 3, 7, 6]
    for keep in range(9):
        assert rows(*top_blocks(scores, keep)) == [sorted({4, 5} if keep == 2 else set(order[:keep]))]
    junk = torch.tensor([nan, 1.0, inf, 2.0])[None, None, None]
    sizes = torch.tensor([[0, 3, 0, 3]])
    assert rows(*top_blocks(junk, 1, sizes=sizes)) == [[3]], "scores of empty blocks do not matter"
    assert rows(*threshold_blocks(junk, 0.0, sizes=sizes)) == [[3]]


def test_nothing_to_choose_from() -> None:
    scores = random_scores(1, 1, 2, 3)
    empty = torch.zeros((1, 3), dtype=torch.int32)
    for blocks, counts in (
        top_blocks(scores, 2, sizes=empty),
        threshold_blocks(scores, 0.0, sizes=empty),
        top_blocks(scores, 0),
    ):
        assert counts.tolist() == [[[0, 0]]]
        assert rows(blocks, counts) == [[], []]


def test_threshold_is_that_of_the_rows_own_scores() -> None:
    scores = torch.randn((2, 2, 8, 64), generator=torch.Generator().manual_seed(1))
    for beta in (-1.0, 0.0, 1.0, 2.0):
        bar = scores.double().mean(-1, keepdim=True) + beta * scores.double().std(-1, keepdim=True, correction=0)
        found = rows(*threshold_blocks(scores, beta))
        for row, values, height in zip(found, scores.flatten(0, 2), bar.flatten(), strict=True):
            above = [n for n, value in enumerate(values.tolist()) if value > height]
            assert row == (above or [int(values.argmax())])
    many = torch.randn((1, 1, 16, 4096), generator=torch.Generator().manual_seed(2))
    counts = threshold_blocks(many, 1.0)[1]
    assert abs(counts.float().mean().item() / 4096 - (1 - NormalDist().cdf(1.0))) < 0.01


def test_threshold_with_required_and_empty_blocks() -> None:
    scores = torch.tensor([9.0, 0, 0, 0, -9, 50])[None, None, None]
    sizes = torch.tensor([[4, 4, 4, 4, 4, 0]])
    assert rows(*threshold_blocks(scores, 1.0, sizes=sizes)) == [[0]], "the score of an empty block counts for nothing"
    always = torch.tensor([False, False, False, False, True, True])
    assert rows(*threshold_blocks(scores, 1.0, always=always, sizes=sizes)) == [[0, 4]]
    assert rows(*threshold_blocks(scores, -math.inf, sizes=sizes)) == [[0, 1, 2, 3, 4]]
    assert rows(*threshold_blocks(torch.ones(1, 1, 1, 5), 0.0)) == [[0]], "of equals, the first"


def test_text_does_not_raise_the_bar_for_the_image() -> None:
    image = torch.tensor([0.0, 1.0, 2.0, 9.0])
    scores = torch.cat([torch.full((2,), 100.0), image])[None, None, None]
    words = torch.tensor([True, True, False, False, False, False])
    plain, _ = threshold_blocks(scores, 1.0, always=words)
    found, counts = threshold_blocks(scores, 1.0, always=words, among=~words)
    alone, _ = threshold_blocks(image[None, None, None], 1.0)
    assert plain.tolist() == [[[[0, 1]]]]
    assert found.tolist() == [[[[0, 1, 5]]]] and counts.tolist() == [[[3]]]
    assert alone.tolist() == [[[[3]]]]


def test_density_one_gives_all_blocks() -> None:
    scores = random_scores(1, 2, 3, 11)
    mass = scores.abs() + 0.1
    assert rows(*top_blocks(scores, kept_number(1.0, 11))) == [list(range(11))] * 6
    assert head_budgets(mass, 1.0).tolist() == [[11, 11]]
    assert rows(*top_blocks(mass, head_budgets(mass, 1.0))) == [list(range(11))] * 6
    assert rows(*threshold_blocks(scores, -math.inf)) == [list(range(11))] * 6


def test_kept_number() -> None:
    assert [kept_number(d, 20) for d in (0.001, 0.125, 0.1, 0.5, 0.99, 1.0)] == [1, 3, 2, 10, 20, 20]
    assert kept_number(0.5, 1) == 1
    assert kept_number(0.5, 0) == 0


def concentrated(heads: list[int], blocks: int = 40, queries: int = 6) -> Tensor:
    """Mass (1, H, NQ, N) of heads that spread theirs evenly over so many blocks."""
    mass = torch.zeros(1, len(heads), queries, blocks)
    for head, number in enumerate(heads):
        mass[0, head, :, :number] = 64 / number
    return mass


def test_concentrated_heads_give_to_the_others() -> None:
    # k = 8 of 40: recall 1 of heads with up to 8 blocks, 8/20 and 8/40 of the others.
    mass = concentrated([4, 20, 8, 40])
    assert head_budgets(mass, 0.2).tolist() == [[4, 12, 4, 12]]
    assert head_budgets(mass, 0.2, recall=0.1).tolist() == [[4, 12, 4, 12]], "at most half of the heads"
    assert head_budgets(concentrated([4, 20, 25, 40]), 0.2).tolist() == [[4, 8, 8, 12]]
    assert head_budgets(concentrated([2, 3, 4, 5]), 0.2).tolist() == [[4, 4, 12, 12]], "ties go by the head"
    assert head_budgets(concentrated([20, 40, 30, 35]), 0.2).tolist() == [[8, 8, 8, 8]], "none above the level"
    assert head_budgets(concentrated([2, 3, 4]), 0.2).tolist() == [[4, 8, 12]]
    assert head_budgets(concentrated([2]), 0.2).tolist() == [[8]]


def test_heads_that_are_apart_give_to_each_other_by_their_recalls() -> None:
    mass = concentrated([4, 20, 8, 40])
    torch.testing.assert_close(head_recalls(mass, 0.2), torch.tensor([[1.0, 8 / 20, 1.0, 8 / 40]]))
    sizes = torch.full((1, 40), 64, dtype=torch.int32)
    sizes[0, 20:] = 0
    assert head_recalls(mass, 0.2, sizes)[0, 1].item() == pytest.approx(4 / 20), "of the blocks that exist"
    assert head_recalls(torch.zeros(1, 2, 3, 10), 0.2).tolist() == [[0.0, 0.0]]
    recalls = torch.cat([head_recalls(part, 0.2) for part in mass.split(2, 1)], 1)
    for part in mass.split(2, 1):
        assert head_budgets(part, 0.2, recalls=recalls).tolist() == head_budgets(mass, 0.2).tolist()


@pytest.mark.parametrize("heads", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("blocks", [1, 2, 5, 40, 41])
def test_the_mean_density_is_kept_exactly(heads: int, blocks: int) -> None:
    generator = torch.Generator().manual_seed(heads * 100 + blocks)
    # A power makes some heads concentrated and some not.
    power = torch.rand((2, heads, 1, 1), generator=generator) * 12
    mass = torch.rand((2, heads, 5, blocks), generator=generator) ** power
    for density in (0.01, 0.125, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0):
        for recall in (0.0, 0.8, 1.0):
            keep = head_budgets(mass, density, recall)
            middle = kept_number(density, blocks)
            assert keep.sum(1).tolist() == [heads * middle] * 2
            assert int(keep.min()) >= 1
            assert int(keep.max()) <= blocks
            move = min(middle // 2, blocks - middle)
            assert set(keep.flatten().tolist()) <= {middle - move, middle, middle + move}


def test_budgets_go_by_the_blocks_that_exist() -> None:
    mass = concentrated([4, 20, 8, 40]).expand(2, -1, -1, -1).clone()
    sizes = torch.full((2, 40), 64, dtype=torch.int32)
    sizes[1, 20:] = 0
    mass[1, :, :, 20:] = torch.nan
    assert head_budgets(mass, 0.2, sizes=sizes).tolist() == [[4, 12, 4, 12], [2, 4, 4, 6]]
    assert head_budgets(torch.zeros(1, 2, 3, 10), 0.2).tolist() == [[2, 2]], "no mass, no recall"


def test_refusals() -> None:
    scores = random_scores(2, 3, 4, 5)
    with pytest.raises(ValueError, match="0 blocks or more"):
        top_blocks(scores, -1)
    with pytest.raises(ValueError, match="keep as an int"):
        top_blocks(scores, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="sizes is"):
        top_blocks(scores, 1, sizes=torch.ones(2, 4))
    with pytest.raises(ValueError, match="always is"):
        top_blocks(scores, 1, always=torch.ones(3, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="floating-point scores of shape"):
        top_blocks(scores[0], 1)
    with pytest.raises(ValueError, match="width of 0 or more"):
        top_blocks(scores, 1, width=-1)
    for density in (0.0, 1.5):
        with pytest.raises(ValueError, match="density above 0"):
            head_budgets(scores.abs(), density)
    with pytest.raises(ValueError, match="takes recalls"):
        head_budgets(scores.abs(), 0.5, recalls=torch.ones(7, 2))


@pytest.mark.parametrize("number", [1, 7, 64])
def test_other_blocks_are_what_is_left(number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    order = torch.rand(2, 3, 5, number, generator=generator).argsort(-1).to(torch.int32)
    counts = torch.randint(0, number + 1, (2, 3, 5), generator=generator).to(torch.int32)
    others = rows(*other_blocks(order, counts, number))
    for chosen, count, other in zip(order.flatten(0, 2).tolist(), counts.flatten().tolist(), others, strict=True):
        assert other == sorted(set(range(number)) - set(chosen[:count]))


def test_other_blocks_of_the_others_are_the_first() -> None:
    blocks, counts = top_blocks(random_scores(1, 2, 4, 9), 4)
    others = other_blocks(blocks, counts, 9)
    again, number = other_blocks(*others, 9)
    assert torch.equal(again[..., :4], blocks) and torch.equal(number, counts)
    assert int(again.max()) < 9 and int(again.min()) >= 0, "also what does not count is a valid id"


def test_other_blocks_refuses_what_does_not_fit() -> None:
    blocks, counts = top_blocks(random_scores(1, 2, 4, 9), 4)
    for wrong in ((blocks, counts[..., :1], 9), (blocks[0], counts, 9), (blocks, counts, 3)):
        with pytest.raises(ValueError, match="other_blocks takes"):
            other_blocks(*wrong)
