"""Bytes of a linear's weight in each format, and of what a product makes of it, before anything is there."""

from __future__ import annotations

from typing import Literal

from accel.kernels.nvfp4 import GROUP
from accel.kernels.quantized_linear import Activation

WeightFormat = Literal["int8", "nvfp4"]

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
    weight: WeightFormat, activation: Activation, outputs: int, channels: int, itemsize: int, rotated: bool
) -> int:
    """Bytes that are made of the stored weight for one call and freed after it; `itemsize` is that of the model.

    INT8 activations on an NVFP4 weight: the weight in INT8. Plain ones: the decoded weight, and in float32 once more
    before it is turned back. Emulated NVFP4 ones: the decoded weight in float32.
    """
    numbers = outputs * channels
    if activation == "int8":
        return 0 if weight == "int8" else numbers + 4 * outputs
    if activation == "nvfp4":
        return 4 * numbers
    return numbers * (itemsize + 4 if rotated else itemsize)
