"""Bytes of a linear's weight in each format, and of what a product makes of it, before anything is there."""

from __future__ import annotations

from typing import Literal

from accel.kernels.forms import FORMS, Form
from accel.kernels.nvfp4 import GROUP
from accel.kernels.nvfp4.layout import tiled_size
from accel.kernels.nvfp4_linear.cpu import PIECE
from accel.kernels.quantized_linear import Activation

WeightFormat = Literal["int8", "nvfp4"]
# "native" is the form in Triton on a GPU that multiplies NVFP4 by itself.
Product = Form | Literal["native"]
PRODUCTS: tuple[Product, ...] = (*FORMS, "native")

# The power of two that NVFP4 activations are scaled by.
_ACTIVATION_SCALE = 4


def stored_bytes(weight: WeightFormat, outputs: int, channels: int) -> int:
    """Bytes of a stored weight (outputs, channels) with all its scales.

    INT8: one byte for each number and four for each row. NVFP4: half a byte for each number, one for each group of 16,
    four for the tensor. Four more are the scale of the activations.
    """
    numbers = outputs * channels
    if weight == "int8":
        return numbers + 4 * outputs + _ACTIVATION_SCALE
    return numbers // 2 + numbers // GROUP + 4 + _ACTIVATION_SCALE


def scratch_bytes(
    weight: WeightFormat, activation: Activation, outputs: int, channels: int, itemsize: int, form: Product
) -> int:
    """Bytes of what is made of the stored weight for one call and freed after it, in a form of the operations;
    `itemsize` is that of the model. What is on the way to it, of a piece that fits a CPU's cache, is not counted.

    INT8 activations on an NVFP4 weight: the weight in INT8, with four bytes for each row. Others on an NVFP4 weight:
    two pieces of it in float32 on a CPU, where one stays until the next is there; nothing in Triton, which decodes in
    registers, but its group scales padded and then in tiles where the GPU multiplies NVFP4 by itself; all of it in
    float32 and in float64 in the reference form. Activations as they are on an INT8 weight: all of it in float32, and
    again as it is scaled, or in the model's dtype where that is longer.
    """
    numbers = outputs * channels
    if activation == "int8":
        return 0 if weight == "int8" else numbers + 4 * outputs
    if weight == "int8":
        return numbers * (4 + max(4, itemsize))
    if form == "cpu":
        return 4 * channels * min(outputs, 2 * max(PIECE // channels, 1))
    if form == "native" and activation == "nvfp4":
        return 2 * tiled_size(outputs, channels // GROUP)
    return 12 * numbers if form == "reference" else 0
