"""Operations on queries, keys and values: attention over blocks, statistics of blocks, attention mass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from accel.kernels.block_attention import block_attention, dense_attention
from accel.kernels.block_mass import block_mass
from accel.kernels.block_statistics import block_means, block_statistics
from accel.kernels.blocks import number_of_blocks, resolved_scale
from accel.kernels.forms import use
from bench.gpu_suite.attention import sparse, tail_of
from bench.gpu_suite.problems import choice, results_of, waves
from bench.kernels.cases import BLOCK, Place, Tensors, Trial, Variant, Work
from bench.kernels.sizes import Size

# Rows of queries that torch's attention mass takes at a time; whole blocks.
_ROWS = 1024


def attentions(size: Size, place: Place) -> list[Variant]:
    """Each tail, as the kernel alone and with all that a method does for it, beside torch's dense attention."""
    tails = ("none", "zeroth", "hybrid")
    alone = [_attention(f"tail {tail}, kernel alone", tail, False, size, place) for tail in tails]
    whole = [_attention(f"tail {tail}, choice included", tail, True, size, place) for tail in tails]
    return [*alone, *whole, _attention("prior, kernel alone", "prior", False, size, place)]


def _attention(name: str, tail: str, whole: bool, size: Size, place: Place) -> Variant:
    def make() -> Trial:
        query, key, value = _sequences(size, place)
        blocks, counts = choice(query, key, BLOCK, place.density)
        if tail == "prior":
            beside = {"prior": value.clone(), "prior_lse": torch.zeros(1, size.heads, size.tokens, device=place.device)}
        else:
            beside = tail_of(key, value, BLOCK, tail)

        def ours() -> Any:
            if whole:
                return sparse(query, key, value, BLOCK, place.density, tail)
            return block_attention(query, key, value, blocks, counts, block_size=BLOCK, **beside)[0]

        def wanted() -> Tensors:
            # Means and matrices lie along the heads as keys do, the prior as queries do.
            cut = {"prior": last, "prior_lse": lambda x: x[:, heads, start:], "first_order": lambda x: x[:, heads]}
            given = {n: cut.get(n, lambda x: x[:, :, heads])(x).double() for n, x in beside.items() if x is not None}
            lists = (x[:, heads, start // BLOCK :] for x in (blocks, counts))
            keys, values = (x[:, :, heads].double() for x in (key, value))
            with use("reference"):
                return (block_attention(last(query).double(), keys, values, *lists, block_size=BLOCK, **given)[0],)

        start, heads, last = _sample(size)
        return Trial(ours, _dense_rival(query, key, value), lambda out: (last(out),), wanted, place.bound)

    number = number_of_blocks(size.tokens, BLOCK)
    dense = 4 * size.heads * size.tokens**2 * size.head_size
    flops = dense * place.density
    if tail in ("zeroth", "hybrid"):
        flops += dense * number / size.tokens
    if tail == "hybrid":
        flops += 2 * size.tokens * size.width * size.head_size * (2 if whole else 1)
    moved = 4 * size.tokens * size.width * place.dtype.itemsize
    work = Work(flops, moved, _needs(size, place), rival=dense)
    return Variant(name, _shape(size), work, make)


def dense_attentions(size: Size, place: Place) -> list[Variant]:
    def make() -> Trial:
        query, key, value = _sequences(size, place)
        start, heads, last = _sample(size)

        def wanted() -> Tensors:
            with use("reference"):
                return dense_attention(last(query).double(), *(x[:, :, heads].double() for x in (key, value)))

        return Trial(
            lambda: dense_attention(query, key, value, block_size=BLOCK),
            _dense_rival(query, key, value),
            lambda result: (last(result[0]), result[1][:, heads, start:]),
            wanted,
            place.bound,
        )

    flops = 4 * size.heads * size.tokens**2 * size.head_size
    moved = 4 * size.tokens * size.width * place.dtype.itemsize
    return [Variant("all keys", _shape(size), Work(flops, moved, _needs(size, place), flops), make)]


def masses(size: Size, place: Place) -> list[Variant]:
    """AdaSpa's search: the mass alone, and with what a tail would give each block."""

    def make(tail: bool) -> Trial:
        query, key, value = _sequences(size, place)
        scale = resolved_scale(None, size.head_size)
        lse = dense_attention(query, key, value, block_size=BLOCK)[1]
        mean_key = block_means(key, BLOCK) if tail else None
        start, heads, last = _sample(size)

        def ours() -> tuple[Tensor, Tensor | None]:
            return block_mass(query, key, lse, BLOCK, mean_key=mean_key)

        def plain() -> Tensors:
            found = [_mass(query, key, lse, scale, 1.0)]
            if mean_key is not None:
                counts = _counts(size, place)
                found.append(_mass(query, mean_key.to(query.dtype), lse, scale, counts, summed=False))
            return tuple(found)

        def wanted() -> Tensors:
            given = (last(query).double(), key[:, :, heads].double(), lse[:, heads, start:].double())
            means = None if mean_key is None else mean_key[:, :, heads].double()
            with use("reference"):
                return results_of(block_mass(*given, BLOCK, mean_key=means))

        return Trial(
            ours,
            {"torch": plain},
            lambda result: tuple(part[:, heads, start // BLOCK :] for part in results_of(result)),
            wanted,
            place.bound_of_sums,
        )

    number = number_of_blocks(size.tokens, BLOCK)
    flops = 2 * size.heads * size.tokens**2 * size.head_size
    moved = 2 * size.tokens * size.width * place.dtype.itemsize + 4 * size.heads * number**2
    needs = _needs(size, place) + 16 * size.heads * number**2 + 16 * _ROWS * size.tokens
    # The log-sum-exp comes from a dense attention, twice the work.
    alone = Work(flops, moved, needs, rival=2 * flops)
    tailed = Work(flops * (1 + number / size.tokens), moved + 4 * size.heads * number**2, needs, rival=2 * flops)
    return [
        Variant("search", _shape(size), alone, lambda: make(False)),
        Variant("search with a tail", _shape(size), tailed, lambda: make(True)),
    ]


def means(size: Size, place: Place) -> list[Variant]:
    def make() -> Trial:
        _, key, _ = _sequences(size, place)
        heads = _sample(size)[1]

        def wanted() -> Tensors:
            with use("reference"):
                return (block_means(key[:, :, heads].double(), BLOCK),)

        counts = _counts(size, place)[:, None, None]
        return Trial(
            lambda: block_means(key, BLOCK),
            {"torch": lambda: _in_blocks(key).sum(2, dtype=torch.float32) / counts},
            lambda result: (result[:, :, heads],),
            wanted,
            place.bound_of_sums,
        )

    moved = size.tokens * size.width * place.dtype.itemsize
    return [Variant("of keys", _shape(size), Work(0, moved, _needs(size, place)), make)]


def statistics(size: Size, place: Place) -> list[Variant]:
    """Means of keys and values; the first-order matrix beside them; the norm of each block's matrix too."""

    def make(first_order: bool, spread: bool) -> Trial:
        _, key, value = _sequences(size, place)
        heads = _sample(size)[1]
        counts = _counts(size, place)[:, None, None]
        # Zeros behind the last token, and not the mean with its sign turned.
        valid = _in_blocks(torch.ones(1, size.tokens, 1, 1, device=place.device))

        def ours() -> Any:
            return block_statistics(key, value, BLOCK, first_order=first_order, spread=spread)

        def plain() -> Tensors:
            parts = [_in_blocks(x).float() for x in (key, value)]
            centres = [part.sum(2) / counts for part in parts]
            if not first_order:
                return tuple(centres)
            left, right = ((x - mean[:, :, None]) * valid for x, mean in zip(parts, centres, strict=True))
            if not spread:
                return (*centres, torch.einsum("bnthd,bnthe->bhde", left, right) / size.tokens)
            matrices = torch.einsum("bnthd,bnthe->bnhde", left, right)
            norms = torch.linalg.matrix_norm(matrices).transpose(1, 2)
            return (*centres, matrices.sum(1) / size.tokens, norms)

        def wanted() -> Tensors:
            given = (x[:, :, heads].double() for x in (key, value))
            with use("reference"):
                return results_of(block_statistics(*given, BLOCK, first_order=first_order, spread=spread))

        def found(result: Any) -> Tensors:
            mean_key, mean_value, matrix, norms = result
            parts = (mean_key[:, :, heads], mean_value[:, :, heads])
            others = (None if x is None else x[:, heads] for x in (matrix, norms))
            return results_of((*parts, *others))

        return Trial(ours, {"torch": plain}, found, wanted, place.bound_of_sums)

    def variant(name: str, first_order: bool, spread: bool) -> Variant:
        flops = 2 * size.tokens * size.width * size.head_size * first_order
        moved = 2 * size.tokens * size.width * place.dtype.itemsize
        matrices = number_of_blocks(size.tokens, BLOCK) * size.head_size**2 * (4 * size.heads * spread + 16)
        needs = 2 * _needs(size, place) + 2 * matrices
        return Variant(name, _shape(size), Work(flops, moved, needs, flops), lambda: make(first_order, spread))

    return [
        variant("means", False, False),
        variant("means and matrix", True, False),
        variant("means, matrix and norms", True, True),
    ]


def _sequences(size: Size, place: Place) -> list[Tensor]:
    return waves(size.tokens, size.heads, size.head_size, place.dtype, place.device)


def _sample(size: Size) -> tuple[int, slice, Callable[[Tensor], Tensor]]:
    """What is checked of a result: where the last two blocks of queries start, the first and the last head, and a cut
    of both."""
    start = max(0, number_of_blocks(size.tokens, BLOCK) - 2) * BLOCK
    heads = slice(None, None, max(1, size.heads - 1))
    return start, heads, lambda x: x[:, start:, heads]


def _dense_rival(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Callable[[], Tensor]]:
    # In the layout that diffusers' processors have; the transposition is a view.
    heads_first = [x.transpose(1, 2) for x in (query, key, value)]
    return {"torch: dense attention": lambda: scaled_dot_product_attention(*heads_first).transpose(1, 2)}


def _mass(query: Tensor, key: Tensor, lse: Tensor, scale: float, weight: Any, summed: bool = True) -> Tensor:
    """As one would write it without a kernel: no more than some rows of scores at a time, for each head."""
    found = []
    for head in range(query.shape[2]):
        keys = key[0, :, head].T
        rows = []
        for start in range(0, query.shape[1], _ROWS):
            scores = (query[0, start : start + _ROWS, head] @ keys).float() * scale
            shares = (scores - lse[0, head, start : start + _ROWS, None]).clamp(max=30.0).exp() * weight
            shares = _by_block(shares) if summed else shares
            rows.append(_by_block(shares.T).T)
        found.append(torch.cat(rows))
    return torch.stack(found)[None]


def _by_block(x: Tensor) -> Tensor:
    return pad(x, (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK)).sum(-1)


def _in_blocks(x: Tensor) -> Tensor:
    """(batch, blocks, tokens, heads, head size), zeros behind the last token."""
    missing = -x.shape[1] % BLOCK
    whole = pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    return whole.unflatten(1, (-1, BLOCK))


def _counts(size: Size, place: Place) -> Tensor:
    starts = torch.arange(0, size.tokens, BLOCK, device=place.device)
    return (size.tokens - starts).clamp(max=BLOCK)


def _needs(size: Size, place: Place) -> float:
    """Query, key, value and result twice over, and two heads of all of them in float64, with their scores."""
    numbers = size.tokens * size.width
    return 8 * numbers * place.dtype.itemsize + 16 * numbers + 16 * 4 * BLOCK * size.tokens


def _shape(size: Size) -> str:
    return f"{size.tokens} tokens, {size.heads}×{size.head_size}"


VARIANTS = {
    "block_attention.block_attention": attentions,
    "block_attention.dense_attention": dense_attentions,
    "block_mass.block_mass": masses,
    "block_statistics.block_means": means,
    "block_statistics.block_statistics": statistics,
}
