"""Linears in INT8 and NVFP4 against the linear that they replace: attention's and both of the feed-forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from accel.kernels.forms import use
from accel.kernels.int8 import int8_linear, quantize_int8
from accel.kernels.nvfp4 import dequantize_nvfp4, quantize_nvfp4
from accel.kernels.nvfp4_linear import nvfp4_linear, nvfp4_weight_linear
from accel.kernels.quantized_linear import ACTIVATIONS, SEEN, quantized_linear
from accel.kernels.rotation import BLOCK, rotate
from bench.gpu_suite.problems import random
from bench.kernels.cases import CHECKED, Place, Tensors, Trial, Variant, Work, last_rows
from bench.kernels.formats import NVFP4, SCALE, in_nvfp4
from bench.kernels.sizes import Size

# Outputs that are checked, the last ones: the reference takes a product of float64 on a CPU.
_OUTPUTS = 256
_ALONE, _QUANTIZED, _ROTATED = "product alone", "with quantization", "with quantization and rotation"

# Activations, weight and bias, and which way of calling; gives the trial.
_Make = Callable[[Tensor, Tensor, Tensor, str], Trial]


def int8_products(size: Size, place: Place) -> list[Variant]:
    """The product of what is quantized already, and with the quantization of the activations (and their rotation)."""

    def make(x: Tensor, weight: Tensor, bias: Tensor, kind: str) -> Trial:
        turned = kind == _ROTATED
        stored = quantize_int8(rotate(weight, 1 / BLOCK) if turned else weight)
        ready = quantize_int8(x)

        def made() -> Tensors:
            return ready if kind == _ALONE else quantize_int8(x, rotate=turned)

        def unfused() -> Tensor:
            integers, scale = made()
            sums = torch._int_mm(integers, stored[0].T)
            return (sums.float() * scale[:, None] * stored[1] + bias.float()).to(place.dtype)

        def wanted() -> Tensors:
            with use("reference"):
                rows = quantize_int8(*last_rows(x), rotate=turned)
                return (int8_linear(*rows, *_last_outputs(*stored, bias), place.dtype),)

        rivals = {"torch: linear": lambda: linear(x, weight, bias), "torch._int_mm, unfused": unfused}
        return Trial(lambda: int8_linear(*made(), *stored, bias, place.dtype), rivals, _corner, wanted)

    return _products(make, (_ALONE, _QUANTIZED, _ROTATED), 1.0, size, place)


def nvfp4_products(size: Size, place: Place) -> list[Variant]:
    """Both in NVFP4: by the tensor cores where there are such, decoded before the product elsewhere."""

    def make(x: Tensor, weight: Tensor, bias: Tensor, kind: str) -> Trial:
        kept, scale = in_nvfp4(weight), torch.tensor(SCALE, device=place.device)
        ready = quantize_nvfp4(x, scale)

        def ours() -> Tensor:
            made = ready if kind == _ALONE else quantize_nvfp4(x, scale)
            return nvfp4_linear(*made, *kept, bias, place.dtype)

        def wanted() -> Tensors:
            with use("reference"):
                rows = quantize_nvfp4(*last_rows(x), scale.cpu())
                return (nvfp4_linear(*rows, *_last_outputs(*kept, bias), place.dtype),)

        return Trial(ours, {"torch: linear": lambda: linear(x, weight, bias)}, _corner, wanted, place.bound)

    return _products(make, (_ALONE, _QUANTIZED), NVFP4, size, place)


def weight_products(size: Size, place: Place) -> list[Variant]:
    """The weight alone in NVFP4."""

    def make(x: Tensor, weight: Tensor, bias: Tensor, kind: str) -> Trial:
        kept = in_nvfp4(weight)

        def wanted() -> Tensors:
            with use("reference"):
                return (nvfp4_weight_linear(*last_rows(x), *_last_outputs(*kept, bias)),)

        rivals = {
            "torch: linear": lambda: linear(x, weight, bias),
            "decoded, then linear": lambda: linear(x, dequantize_nvfp4(*kept, place.dtype), bias),
        }
        return Trial(lambda: nvfp4_weight_linear(x, *kept, bias), rivals, _corner, wanted, place.bound)

    return _products(make, ("product",), NVFP4, size, place)


def routed_products(size: Size, place: Place) -> list[Variant]:
    """As mixed precision calls it: one NVFP4 weight, the activations' format read when it runs."""

    def make(x: Tensor, weight: Tensor, bias: Tensor, kind: str) -> Trial:
        kept = in_nvfp4(weight)
        route = torch.tensor([[f"activations {name}" for name in ACTIVATIONS].index(kind), 0, -1])

        def call(rows: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor) -> Tensor:
            seen, scale = torch.zeros(len(SEEN), device=rows.device), torch.tensor(SCALE, device=rows.device)
            ran = torch.zeros(len(ACTIVATIONS), dtype=torch.int64)
            return quantized_linear(rows, (codes, scales, tensor_scale), bias, scale, False, route, ran, seen)

        def wanted() -> Tensors:
            with use("reference"):
                return (call(*last_rows(x), *_last_outputs(*kept, bias)),)

        rivals = {"torch: linear": lambda: linear(x, weight, bias)}
        return Trial(lambda: call(x, *kept, bias), rivals, _corner, wanted, place.bound)

    return _products(make, [f"activations {name}" for name in ACTIVATIONS], NVFP4, size, place)


def _products(make: _Make, kinds: Sequence[str], itemsize: float, size: Size, place: Place) -> list[Variant]:
    """Each linear in each way of calling; `itemsize` is that of the weight's numbers."""

    def variant(layer: str, channels: int, outputs: int, kind: str) -> Variant:
        def made() -> Trial:
            x = random(place.device, place.dtype, size.tokens, channels, seed=1)
            weight = random(place.device, place.dtype, outputs, channels, seed=2)
            return make(x, weight, random(place.device, place.dtype, outputs, seed=3), kind)

        flops = 2 * size.tokens * channels * outputs
        given, result = size.tokens * channels, size.tokens * outputs
        weights = channels * outputs
        moved = place.dtype.itemsize * (given + result) + itemsize * weights
        # Sums of the unfused products are of 32 bits, twice; plain ways hold numbers of float32.
        needs = 12 * (given + weights) + 16 * result
        shape = f"{size.tokens}×{channels}×{outputs}"
        return Variant(f"{layer}, {kind}", shape, Work(flops, moved, needs, flops), made)

    return [
        variant(layer, channels, outputs, kind)
        for layer, (channels, outputs) in size.linears.items()
        for kind in kinds
        if kind != _ROTATED or channels % BLOCK == 0
    ]


def _last_outputs(*weight: Tensor) -> Tensors:
    """The last outputs of a weight's parts and of a bias, on a CPU; a tensor scale is that of all."""
    return tuple((part[-_OUTPUTS:] if part.ndim else part).cpu() for part in weight)


def _corner(result: Tensor) -> Tensors:
    return (result[-CHECKED:, -_OUTPUTS:].cpu(),)


VARIANTS = {
    "int8.int8_linear": int8_products,
    "nvfp4_linear.nvfp4_linear": nvfp4_products,
    "nvfp4_linear.nvfp4_weight_linear": weight_products,
    "quantized_linear.quantized_linear": routed_products,
}
