"""Operations on hidden states between blocks: what a run of blocks changed, kept and put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel.kernels.delta import apply_delta, compute_delta, delta_statistics, update_delta
from accel.kernels.forms import use
from bench.gpu_suite.problems import results_of
from bench.kernels.cases import Place, Tensors, Trial, Variant, Work, by_reference
from bench.kernels.sizes import Size

_GAP = 2


def compute_deltas(size: Size, place: Place) -> list[Variant]:
    def plain(output: Tensor, hidden: Tensor) -> Tensors:
        delta = output - hidden
        return delta, _sums(delta, hidden, None)

    def beside(output: Tensor, hidden: Tensor, before: Tensor) -> Tensors:
        delta = output - hidden
        return delta, _sums(delta, hidden, before)

    return [
        _variant("first capture", compute_delta, plain, 2, 1, size, place),
        _variant("beside the last", compute_delta, beside, 3, 1, size, place),
    ]


def statistics_of_deltas(size: Size, place: Place) -> list[Variant]:
    def plain(output: Tensor, hidden: Tensor) -> Tensor:
        return _sums(output - hidden, hidden, None)

    return [_variant("nothing kept", delta_statistics, plain, 2, 0, size, place)]


def update_deltas(size: Size, place: Place) -> list[Variant]:
    def ours(output: Tensor, hidden: Tensor, before: Tensor, slope: Tensor | None = None) -> Tensors:
        return update_delta(output, hidden, before, slope, _GAP)

    def plain(output: Tensor, hidden: Tensor, before: Tensor, slope: Tensor | None = None) -> Tensors:
        delta = output - hidden
        predicted = before if slope is None else before + _GAP * slope
        return delta, (delta - before) / _GAP, _sums(delta, hidden, predicted)

    return [
        _variant("first slope", ours, plain, 3, 2, size, place),
        _variant("with a slope", ours, plain, 4, 2, size, place),
    ]


def apply_deltas(size: Size, place: Place) -> list[Variant]:
    return [
        _variant("as it is", apply_delta, lambda hidden, delta: hidden + delta, 2, 1, size, place),
        _variant(
            "along a slope",
            lambda hidden, delta, slope: apply_delta(hidden, delta, slope, _GAP),
            lambda hidden, delta, slope: hidden + (delta + _GAP * slope),
            3,
            1,
            size,
            place,
        ),
    ]


def _variant(
    name: str,
    ours: Callable[..., Any],
    plain: Callable[..., Any],
    read: int,
    written: int,
    size: Size,
    place: Place,
) -> Variant:
    def make() -> Trial:
        given = _random(size, place, read)

        def wanted() -> Tensors:
            with use("reference"):
                return results_of(ours(*(x.double() for x in given)))

        others = {"torch": plain, **by_reference(ours)}
        rivals = {rival: (lambda call=call: call(*given)) for rival, call in others.items()}
        return Trial(lambda: ours(*given), rivals, results_of, wanted, place.bound)

    numbers = size.tokens * size.width
    moved = (read + written) * numbers * place.dtype.itemsize
    # The reference has about eight tensors of float64 at a time.
    return Variant(name, f"{size.tokens}×{size.width}", Work(0, moved, moved + 64 * numbers), make)


def _random(size: Size, place: Place, number: int) -> list[Tensor]:
    generator = torch.Generator(place.device).manual_seed(1)
    shape = (size.tokens, size.width)
    return [
        torch.randn(shape, generator=generator, device=place.device, dtype=torch.float32).to(place.dtype)
        for _ in range(number)
    ]


def _sums(delta: Tensor, hidden: Tensor, predicted: Tensor | None) -> Tensor:
    """What a caching rule asks of a delta, as one would write it."""
    wide = delta.float()
    return torch.stack(
        [
            wide.square().sum(),
            hidden.float().square().sum(),
            wide.new_zeros(()) if predicted is None else (wide - predicted.float()).square().sum(),
            wide.abs().amax(),
            (~wide.isfinite()).sum().float(),
        ]
    )


VARIANTS = {
    "delta.compute_delta": compute_deltas,
    "delta.delta_statistics": statistics_of_deltas,
    "delta.update_delta": update_deltas,
    "delta.apply_delta": apply_deltas,
}
