"""Operations on a number for each pair of blocks, and the order of tokens: choosing, keeping a choice, arranging.

All of it is plain torch, so that no form stands beside another: what is checked is checked another way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accel.kernels.arrangement import Arrangement, arrange, let_go_of_arrangements
from accel.kernels.block_bits import lists_of, to_bits
from accel.kernels.blocks import listed_blocks, number_of_blocks
from accel.kernels.selection import (
    head_budgets,
    head_recalls,
    kept_number,
    other_blocks,
    threshold_blocks,
    top_blocks,
)
from bench.gpu_suite.problems import block_scores, waves
from bench.kernels.cases import BLOCK, Place, Tensors, Trial, Variant, Work
from bench.kernels.sizes import Size

_BETA = 1.0


def tops(size: Size, place: Place) -> list[Variant]:
    def same_for_all(scores: Tensor, keep: int) -> Trial:
        return Trial(
            lambda: top_blocks(scores, keep),
            {"torch: topk": lambda: scores.topk(keep)},
            lambda result: (result[0],),
            lambda: (scores.topk(keep).indices.sort(-1).values.int(),),
        )

    def by_head(scores: Tensor, keep: int) -> Trial:
        budget = torch.full((size.heads,), keep, device=place.device)
        budget[: size.heads // 2] -= keep // 2

        def wanted() -> Tensors:
            rank = scores.argsort(-1, descending=True).argsort(-1)
            return (rank < budget[None, :, None, None],)

        return Trial(
            lambda: top_blocks(scores, budget, width=keep),
            {"torch: topk": lambda: scores.topk(keep)},
            lambda result: (listed_blocks(*result, scores.shape[-1]),),
            wanted,
        )

    return [_scored("a number", size, place, same_for_all), _scored("a budget for each head", size, place, by_head)]


def thresholds(size: Size, place: Place) -> list[Variant]:
    def make(scores: Tensor, keep: int) -> Trial:
        def plain() -> Tensor:
            variance, mean = torch.var_mean(scores, -1, correction=0, keepdim=True)
            return (scores > mean + _BETA * variance.sqrt()).nonzero()

        def wanted() -> Tensors:
            wide = scores.double()
            variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
            highest = torch.zeros_like(wide, dtype=torch.bool).scatter_(-1, wide.argmax(-1, keepdim=True), True)
            return ((wide > mean + _BETA * variance.sqrt()) | highest,)

        def found(result: Tensors) -> Tensors:
            return (listed_blocks(result[0], result[1], scores.shape[-1]),)

        # A score that is the bar to the last bit may fall on either side of it.
        return Trial(lambda: threshold_blocks(scores, _BETA), {"torch": plain}, found, wanted, 1e-4)

    return [_scored("one deviation", size, place, make)]


def others(size: Size, place: Place) -> list[Variant]:
    def make(scores: Tensor, keep: int) -> Trial:
        lists, number = top_blocks(scores, keep), scores.shape[-1]
        return Trial(
            lambda: other_blocks(*lists, number),
            {"torch": lambda: (~_mask(lists[0], number)).nonzero()},
            lambda result: (listed_blocks(*result, number),),
            lambda: (~_mask(lists[0], number),),
        )

    return [_scored("what is left", size, place, make)]


def recalls(size: Size, place: Place) -> list[Variant]:
    def make(scores: Tensor, keep: int) -> Trial:
        mass = scores.softmax(-1)

        def plain() -> Tensor:
            return mass.topk(keep).values.sum((-2, -1)) / mass.sum((-2, -1))

        def wanted() -> Tensors:
            wide = mass.double()
            return (wide.sort(-1).values[..., -keep:].sum((-2, -1)) / wide.sum((-2, -1)),)

        run = partial(head_recalls, mass, place.density)
        return Trial(run, {"torch": plain}, lambda result: (result,), wanted, 1e-5)

    return [_scored("of a search", size, place, make)]


def budgets(size: Size, place: Place) -> list[Variant]:
    def make(scores: Tensor, keep: int) -> Trial:
        mass, number = scores.softmax(-1), scores.shape[-1]
        shares = head_recalls(mass, place.density)
        level = float(shares.median())

        def wanted() -> Tensors:
            order = sorted(range(size.heads), key=lambda head: -float(shares[0, head]))
            moving = min(sum(float(share) > level for share in shares[0]), size.heads // 2)
            step, given = min(keep // 2, number - keep), [keep] * size.heads
            for place_of in range(moving):
                given[order[place_of]] -= step
                given[order[-1 - place_of]] += step
            return (torch.tensor([given], device=mass.device),)

        return Trial(lambda: head_budgets(mass, place.density, level), {}, lambda result: (result,), wanted)

    return [_scored("half of the heads give", size, place, make)]


def bits(size: Size, place: Place) -> list[Variant]:
    def make(scores: Tensor, keep: int) -> Trial:
        lists, number = top_blocks(scores, keep), scores.shape[-1]
        powers = 2 ** torch.arange(8, device=scores.device)

        def unpacked(result: Tensor) -> Tensors:
            return (((result[..., None] & powers) > 0).flatten(-2)[..., :number],)

        mask = partial(_mask, lists[0], number)
        return Trial(lambda: to_bits(*lists, number), {"torch: a mask of bytes": mask}, unpacked, lambda: (mask(),))

    return [_scored("a choice", size, place, make)]


def lists(size: Size, place: Place) -> list[Variant]:
    def make(scores: Tensor, keep: int) -> Trial:
        chosen, number = top_blocks(scores, keep), scores.shape[-1]
        kept, mask = to_bits(*chosen, number), _mask(chosen[0], number)
        return Trial(
            lambda: lists_of(kept, keep, number),
            {"torch: from a mask of bytes": lambda: mask.nonzero()},
            lambda result: result,
            lambda: chosen,
        )

    return [_scored("a choice", size, place, make)]


def arranging(size: Size, place: Place) -> list[Variant]:
    def make() -> Trial:
        def run() -> Arrangement:
            let_go_of_arrangements()
            return _arrangement(size, place)

        def found(result: Arrangement) -> Tensors:
            return result.gather[result.scatter], result.sizes.sum()

        def wanted() -> Tensors:
            every = torch.arange(size.tokens, device=place.device)
            return every, torch.tensor(size.tokens, device=place.device)

        return Trial(run, {}, found, wanted)

    return [Variant("made anew", _shape(size), Work(0, 16 * size.tokens, 64 * size.tokens), make)]


def applying(size: Size, place: Place) -> list[Variant]:
    def make() -> Trial:
        arranged, sequence = _arrangement(size, place), _sequence(size, place)

        def plain() -> Tensor:
            return sequence[:, arranged.gather]

        return Trial(lambda: arranged.apply(sequence), {"torch": plain}, lambda x: (x,), lambda: (plain(),))

    return [_moved(size, place, make)]


def restoring(size: Size, place: Place) -> list[Variant]:
    def make() -> Trial:
        arranged, sequence = _arrangement(size, place), _sequence(size, place)
        ordered = arranged.apply(sequence)

        def plain() -> Tensor:
            return ordered[:, arranged.scatter]

        return Trial(lambda: arranged.restore(ordered), {"torch": plain}, lambda x: (x,), lambda: (sequence,))

    return [_moved(size, place, make)]


def text_lengths(size: Size, place: Place) -> list[Variant]:
    if not size.text:
        return []

    def make() -> Trial:
        arranged = _arrangement(size, place)
        lengths = torch.tensor([size.text // 3, size.text], device=place.device)

        def wanted() -> Tensors:
            both = arranged.sizes.repeat(2, 1)
            for row, length in enumerate(lengths.tolist()):
                for place_of, block in enumerate(range(arranged.text.start, arranged.text.stop)):
                    both[row, block] = max(0, min(BLOCK, length - BLOCK * place_of))
            return (both,)

        return Trial(lambda: arranged.with_text_lengths(lengths), {}, lambda x: (x,), wanted)

    return [Variant("two texts", _shape(size), Work(0, 8 * number_of_blocks(size.tokens, BLOCK), 0), make)]


def _scored(name: str, size: Size, place: Place, make: Callable[[Tensor, int], Trial]) -> Variant:
    """On the scores of real blocks; `make` takes them and how many blocks a row keeps."""

    def scored() -> Trial:
        query, key, _ = waves(size.tokens, size.heads, size.head_size, place.dtype, place.device)
        return make(block_scores(query, key, BLOCK), kept_number(place.density, number))

    number = number_of_blocks(size.tokens, BLOCK)
    pairs = size.heads * number**2
    # Sorting takes numbers of 64 bits, several at a time.
    needs = 8 * size.tokens * size.width * place.dtype.itemsize + 64 * pairs
    return Variant(name, f"{size.heads} heads, {number}×{number} blocks", Work(0, 4 * pairs, needs), scored)


def _moved(size: Size, place: Place, make: Callable[[], Trial]) -> Variant:
    moved = 2 * size.tokens * size.width * place.dtype.itemsize
    return Variant("a sequence", _shape(size), Work(0, moved, 3 * moved), make)


def _arrangement(size: Size, place: Place) -> Arrangement:
    return arrange(size.grid, text=size.text_at, text_length=size.text, block_size=BLOCK, device=place.device)


def _sequence(size: Size, place: Place) -> Tensor:
    shape: Any = (1, size.tokens, size.heads, size.head_size)
    generator = torch.Generator(place.device).manual_seed(1)
    return torch.randn(shape, generator=generator, device=place.device).to(place.dtype)


def _mask(blocks: Tensor, number: int) -> Tensor:
    marks = torch.zeros(*blocks.shape[:-1], number, dtype=torch.bool, device=blocks.device)
    return marks.scatter_(-1, blocks.long(), True)


def _shape(size: Size) -> str:
    grid = "×".join(map(str, size.grid))
    return f"{grid} tokens" + (f" and {size.text} of text" if size.text else "")


VARIANTS = {
    "selection.top_blocks": tops,
    "selection.threshold_blocks": thresholds,
    "selection.other_blocks": others,
    "selection.head_recalls": recalls,
    "selection.head_budgets": budgets,
    "block_bits.to_bits": bits,
    "block_bits.lists_of": lists,
    "arrangement.arrange": arranging,
    "arrangement.Arrangement.apply": applying,
    "arrangement.Arrangement.restore": restoring,
    "arrangement.Arrangement.with_text_lengths": text_lengths,
}
