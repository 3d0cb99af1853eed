"""Number formats, rotations and products: bit for bit what the reference form gives, NVFP4 products within bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accel.kernels.forms import use
from accel.kernels.int8 import int8_linear, quantize_int8
from accel.kernels.nvfp4 import dequantize_nvfp4, nvfp4_to_int8, quantize_nvfp4
from accel.kernels.nvfp4_linear import nvfp4_linear, nvfp4_weight_linear, rounding_nvfp4_linear
from accel.kernels.quantized_linear import ACTIVATIONS, SEEN, Activation, quantized_linear
from accel.kernels.rotation import BLOCK, rotate
from bench.gpu_suite.cells import Cells
from bench.gpu_suite.problems import BOUNDS, DTYPES, differing, memory_of_nan, random, relative, results_of

# Rows that no tile divides; channels that blocks of 128 divide, and more outputs than one tile has.
ROWS, CHANNELS, OUTPUTS = 333, 1536, 700
_SCALE = 2.0**-7
# What mixed precision gives rotated activations where nothing was calibrated.
_ROTATED_SCALE = 4.0


def run(cells: Cells, device: str) -> None:
    """The cells of these kernels, which belong to the part `correctness`."""
    for name, dtype in DTYPES.items():
        for operation, measure in _on_floats(dtype, device).items():
            cells.run(f"{operation}/{name}", measure)


def _on_floats(dtype: torch.dtype, device: str) -> dict[str, Callable[[], dict[str, Any]]]:
    x = partial(random, device, dtype, ROWS, CHANNELS, seed=1)
    weight = partial(random, device, dtype, OUTPUTS, CHANNELS, seed=2)

    def scale() -> Tensor:
        return torch.tensor(_SCALE, device=device)

    def linear() -> dict[str, Any]:
        bias = random(device, dtype, OUTPUTS, seed=3)
        return exact(int8_linear, *quantize_int8(x()), *quantize_int8(weight()), bias, dtype)

    def products() -> dict[str, Any]:
        kept, bias = quantize_nvfp4(weight(), by_error=True), random(device, dtype, OUTPUTS, seed=3)
        return near(dtype, nvfp4_linear, *quantize_nvfp4(x()), *kept, bias, dtype)

    def rounding(rotated: bool) -> dict[str, Any]:
        bias, kept = random(device, dtype, OUTPUTS, seed=3), quantize_nvfp4(weight(), by_error=True)
        return near(dtype, partial(rounding_nvfp4_linear, rotate=rotated), x(), scale(), *kept, bias)

    def routed(activation: Activation) -> dict[str, Any]:
        bias = random(device, dtype, OUTPUTS, seed=3)
        turned = quantize_nvfp4(rotate(weight(), 1 / BLOCK), by_error=True)
        call = partial(_routed, ACTIVATIONS.index(activation))
        given = (x(), *turned, bias, torch.tensor(_ROTATED_SCALE, device=device))
        return exact(call, *given) if activation == "int8" else near(dtype, call, *given)

    return {
        "rotate": lambda: exact(rotate, x()),
        "quantize_int8/plain": lambda: exact(quantize_int8, x()),
        "quantize_int8/rotated": lambda: exact(partial(quantize_int8, rotate=True), x()),
        "quantize_nvfp4/plain": lambda: exact(quantize_nvfp4, x()),
        "quantize_nvfp4/by_error": lambda: exact(partial(quantize_nvfp4, by_error=True), weight()),
        "quantize_nvfp4/rotated": lambda: exact(partial(quantize_nvfp4, rotate=True), x(), scale()),
        "dequantize_nvfp4": lambda: exact(dequantize_nvfp4, *quantize_nvfp4(weight()), dtype),
        "nvfp4_to_int8": lambda: exact(nvfp4_to_int8, *quantize_nvfp4(weight(), by_error=True)),
        "int8_linear": linear,
        "nvfp4_linear": products,
        "nvfp4_weight_linear": lambda: near(dtype, nvfp4_weight_linear, x(), *quantize_nvfp4(weight(), by_error=True)),
        "rounding_nvfp4_linear/plain": partial(rounding, False),
        "rounding_nvfp4_linear/rotated": partial(rounding, True),
        **{f"quantized_linear/{name}": partial(routed, name) for name in ACTIVATIONS},
    }


def _routed(
    place: int, x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor, scale: Tensor
) -> Tensor:
    """`quantized_linear` on a rotated weight, as mixed precision calls it; raises where another format ran."""
    ran, seen = torch.zeros(len(ACTIVATIONS), dtype=torch.int64), torch.zeros(len(SEEN), device=x.device)
    route = torch.tensor([place, 0, -1])
    result = quantized_linear(x, (codes, scales, tensor_scale), bias, scale, True, route, ran, seen)
    if ran.tolist() != [int(place == each) for each in range(len(ACTIVATIONS))]:
        raise ValueError(f"route {place} ran {ran.tolist()} of {ACTIVATIONS}")
    return result


def exact(call: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """The share of numbers that are not the reference's on a CPU, which must be 0, and whether a second call differs.

    Any NaN is another NaN's equal.
    """
    found, again, wanted = _thrice(call, *arguments)
    apart = max(differing(one.cpu(), other) for one, other in zip(found, wanted, strict=True))
    same = not any(differing(one, other) for one, other in zip(found, again, strict=True))
    return {"error": apart, "bound": 0.0, "correct": apart == 0 and same, "same_bits": same}


def near(dtype: torch.dtype, call: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """The relative error against the reference, which sums in float64, and whether a second call differs.

    The error is None where it is no finite number.
    """
    found, again, wanted = _thrice(call, *arguments)
    error = relative(found[0].cpu(), wanted[0])
    same = torch.equal(found[0], again[0])
    return {
        "error": error if math.isfinite(error) else None,
        "bound": BOUNDS[dtype],
        "correct": error < BOUNDS[dtype] and same,
        "same_bits": same,
    }


def _thrice(call: Callable[..., Any], *arguments: Any) -> tuple[tuple[Tensor, ...], ...]:
    """The results of two calls on the device, and of the reference on a CPU."""
    with memory_of_nan():
        found, again = (results_of(call(*arguments)) for _ in range(2))
    with use("reference"):
        wanted = results_of(call(*(x.cpu() if isinstance(x, Tensor) else x for x in arguments)))
    return found, again, wanted
