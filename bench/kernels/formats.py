"""What makes numbers of another format, row by row: quantization, its way back, the rotation, the scales' layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accel.kernels.forms import use
from accel.kernels.int8 import quantize_int8
from accel.kernels.nvfp4 import (
    GROUP,
    dequantize_nvfp4,
    nvfp4_to_int8,
    quantize_nvfp4,
    swizzle_scales,
    unswizzle_scales,
)
from accel.kernels.quantized_linear import stored_weight
from accel.kernels.rotation import BLOCK, rotate
from bench.gpu_suite.problems import random, results_of
from bench.kernels.cases import Place, Rivals, Tensors, Trial, Variant, Work, by_reference, last_rows
from bench.kernels.sizes import Size

# Bytes of a number in NVFP4, and a tensor scale for activations of about 1.
NVFP4 = 0.5 + 1 / GROUP
SCALE = 2.0**-7

_Prepare = Callable[[Tensor], Tensors]


def int8_quantizations(size: Size, place: Place) -> list[Variant]:
    itemsize = place.dtype.itemsize
    found = [_activations("activations", _alone, quantize_int8, {"torch": _int8}, itemsize + 1, size, place)]
    if size.width % BLOCK == 0:
        ours = partial(quantize_int8, rotate=True)
        rivals = {"torch, rotated before": lambda x: _int8(rotate(x))}
        found.append(_activations("activations, rotated", _alone, ours, rivals, itemsize + 1, size, place))
    return found


def nvfp4_quantizations(size: Size, place: Place) -> list[Variant]:
    """Activations with a scale that is known before, and a weight with the better of two scales for each group."""

    def plain(x: Tensor, scale: Tensor) -> Tensors:
        return quantize_nvfp4(x, scale)[:2]

    def rotated(x: Tensor, scale: Tensor) -> Tensors:
        return quantize_nvfp4(x, scale, rotate=True)[:2]

    def better(weight: Tensor, scale: Tensor) -> Tensors:
        return quantize_nvfp4(weight, scale, by_error=True)[:2]

    def scaled(x: Tensor) -> Tensors:
        return x, torch.tensor(SCALE, device=x.device)

    moved = place.dtype.itemsize + NVFP4
    found = [_activations("activations", scaled, plain, by_reference(plain), moved, size, place)]
    if size.width % BLOCK == 0:
        rivals = by_reference(rotated)
        found.append(_activations("activations, rotated", scaled, rotated, rivals, moved, size, place))
    found.append(_weight("weight, the better scale", scaled, better, by_reference(better), moved, size, place))
    return found


def nvfp4_dequantizations(size: Size, place: Place) -> list[Variant]:
    def ours(*kept: Tensor) -> Tensor:
        return dequantize_nvfp4(*kept, dtype=place.dtype)

    return [_weight("weight", in_nvfp4, ours, by_reference(ours), NVFP4 + place.dtype.itemsize, size, place)]


def conversions(size: Size, place: Place) -> list[Variant]:
    """What mixed precision does to a weight for one product with INT8 activations."""
    rivals: Rivals = {"torch, decoded before": lambda *kept: _int8(dequantize_nvfp4(*kept))}
    return [_weight("weight", in_nvfp4, nvfp4_to_int8, rivals, NVFP4 + 1, size, place)]


def stored_weights(size: Size, place: Place) -> list[Variant]:
    """Back to numbers."""

    def ours(*parts: Tensor) -> Tensor:
        return stored_weight(parts, False, place.dtype)

    def turned(*parts: Tensor) -> Tensor:
        return stored_weight(parts, True, place.dtype)

    itemsize = place.dtype.itemsize
    found = [
        _weight("from NVFP4", in_nvfp4, ours, by_reference(ours), NVFP4 + itemsize, size, place),
        _weight("from INT8", quantize_int8, ours, by_reference(ours), 1 + itemsize, size, place),
    ]
    if size.width % BLOCK == 0:
        found.append(
            _weight("from NVFP4, rotated", in_nvfp4, turned, by_reference(turned), NVFP4 + itemsize, size, place)
        )
    return found


def rotations(size: Size, place: Place) -> list[Variant]:
    if size.width % BLOCK:
        return []

    def with_matrix(x: Tensor) -> Tensors:
        matrix = torch.ones(1, 1)
        while len(matrix) < BLOCK:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        return x, matrix.to(x)

    def plain(x: Tensor, matrix: Tensor) -> Tensor:
        return (x.view(-1, BLOCK) @ matrix).view(x.shape)

    rivals = {"torch: product with the matrix": plain}
    moved = 2 * place.dtype.itemsize
    return [_activations("activations", with_matrix, lambda x, _: rotate(x), rivals, moved, size, place)]


def swizzles(size: Size, place: Place) -> list[Variant]:
    def make() -> Trial:
        scales = _scales(size, place)
        at = _places(scales)
        return Trial(
            lambda: swizzle_scales(scales),
            {"torch: a copy": scales.clone},
            lambda tiles: (tiles.view(torch.uint8)[at],),
            lambda: (scales.view(torch.uint8),),
        )

    return [_of_scales(size, make)]


def unswizzles(size: Size, place: Place) -> list[Variant]:
    def make() -> Trial:
        scales = _scales(size, place)
        tiles = swizzle_scales(scales)
        return Trial(
            lambda: unswizzle_scales(tiles, *scales.shape),
            {"torch: a copy": scales.clone},
            lambda found: (found.view(torch.uint8),),
            lambda: (scales.view(torch.uint8),),
        )

    return [_of_scales(size, make)]


def in_nvfp4(weight: Tensor) -> Tensors:
    """A weight as mixed precision stores it."""
    return quantize_nvfp4(weight, by_error=True)


def _alone(x: Tensor) -> Tensors:
    return (x,)


def _int8(x: Tensor) -> Tensors:
    """As one would write it."""
    scale = x.abs().amax(1, keepdim=True).float() / 127
    return (x / scale).round().to(torch.int8), scale[:, 0]


def _activations(
    name: str, prepare: _Prepare, ours: Callable[..., Any], rivals: Rivals, moved: float, size: Size, place: Place
) -> Variant:
    return _by_rows(name, (size.tokens, size.width), prepare, ours, rivals, moved, place)


def _weight(
    name: str, prepare: _Prepare, ours: Callable[..., Any], rivals: Rivals, moved: float, size: Size, place: Place
) -> Variant:
    return _by_rows(name, (size.feed_forward, size.width), prepare, ours, rivals, moved, place)


def _by_rows(
    name: str,
    shape: tuple[int, int],
    prepare: _Prepare,
    ours: Callable[..., Any],
    rivals: Rivals,
    moved: float,
    place: Place,
) -> Variant:
    """An operation whose rows have nothing to do with each other, so that the last ones can be checked alone.

    `prepare` makes its arguments of a random matrix, those without rows are the same for all; `moved` are bytes for
    each number of the matrix.
    """

    def make() -> Trial:
        given = prepare(random(place.device, place.dtype, *shape, seed=1))

        def wanted() -> Tensors:
            cut = (last_rows(x)[0] if x.shape[:1] == shape[:1] else x.cpu() for x in given)
            with use("reference"):
                return results_of(ours(*cut))

        timed = {rival: (lambda call=call: call(*given)) for rival, call in rivals.items()}
        return Trial(lambda: ours(*given), timed, lambda result: last_rows(*results_of(result)), wanted)

    numbers = shape[0] * shape[1]
    # The plain ways hold several matrices of float32 at a time.
    work = Work(0, moved * numbers, (2 * moved + 32) * numbers)
    return Variant(name, "×".join(map(str, shape)), work, make)


def _of_scales(size: Size, make: Callable[[], Trial]) -> Variant:
    rows, groups = size.feed_forward, size.width // GROUP
    return Variant("of a weight", f"{rows}×{groups}", Work(0, 2 * rows * groups, 24 * rows * groups), make)


def _scales(size: Size, place: Place) -> Tensor:
    return in_nvfp4(random(place.device, place.dtype, size.feed_forward, size.width, seed=1))[1]


def _places(scales: Tensor) -> Tensor:
    """Where each scale is among the tiles, by the formula of the layout."""
    row, group = (torch.arange(n, device=scales.device) for n in scales.shape)
    row = row[:, None]
    tile = row // 128 * -(-len(group) // 4) + group // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + group % 4


VARIANTS = {
    "int8.quantize_int8": int8_quantizations,
    "nvfp4.quantize_nvfp4": nvfp4_quantizations,
    "nvfp4.dequantize_nvfp4": nvfp4_dequantizations,
    "nvfp4.nvfp4_to_int8": conversions,
    "nvfp4.swizzle_scales": swizzles,
    "nvfp4.unswizzle_scales": unswizzles,
    "quantized_linear.stored_weight": stored_weights,
    "rotation.rotate": rotations,
}
