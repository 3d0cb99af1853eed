"""INT8: 8-bit integers with one scale for each row, and the product of two such matrices.

A row is a token of the activations or an output channel of a weight. The scale is symmetric, the row's largest
magnitude over 127, so that a product of integers needs no correction (LLM.int8(), Dettmers et al. 2022,
arXiv 2208.07339, section 2).
"""

import torch
from torch import Tensor

from accel.kernels import checks
from accel.kernels.forms import implementation
from accel.kernels.rotation import require_rotatable

__all__ = ["MOST_CHANNELS", "int8_linear", "quantize_int8"]

# 127 * 127 times this many channels is below 2³¹.
MOST_CHANNELS = 133_144


def quantize_int8(x: Tensor, *, rotate: bool = False) -> tuple[Tensor, Tensor]:
    """Each row divided by its scale and rounded to nearest even; with `rotate`, of the matrix times H of `rotation`.

    With m the row's largest magnitude (at least 2⁻¹⁰⁰), the scale is m / 127 and the integers are round(x * (127 / m)),
    each operation rounded in float32. At most m / 254 is lost. For inference: no gradient is defined.

    Args:
        x: (rows, channels) in float16, bfloat16, float32 or float64 (rounded to float32), contiguous or strided.
        rotate: multiply blocks of 128 channels by H first, in float32.

    Returns:
        int8 (rows, channels) and float32 (rows,), contiguous. A row that holds a NaN or an infinity has the scale NaN
        and zeros: its products are NaN.

    Raises:
        ValueError: x is not a matrix, 128 does not divide channels that are to be rotated, or the forced form cannot
            run on its device.
        TypeError: the dtype is not among the four.
    """
    checks.require_floats("quantize_int8", x=x)
    checks.require_matrix("quantize_int8", x=x)
    if rotate:
        require_rotatable("quantize_int8", x)
    return _quantize_int8(x, rotate)


def int8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """x weightᵀ + bias of two INT8 matrices: ((sum * x_scale) * weight_scale) + bias, the sum exact in int32.

    The sum is rounded to float32 and each operation after it too, and the result once to `dtype`: every form gives
    the same bits. For inference: no gradient is defined.

    Args:
        x: int8 (rows, channels), contiguous or strided; at most 133,144 channels, up to where int32 holds the sums.
        x_scale: float32 (rows,).
        weight: int8 (outputs, channels).
        weight_scale: float32 (outputs,).
        bias: (outputs,) in float16, bfloat16, float32 or float64 (rounded to float32).
        dtype: of the result, one of the four.

    Returns:
        A new contiguous matrix (rows, outputs).

    Raises:
        ValueError: shapes or devices do not fit, there are too many channels, or the forced form cannot run.
        TypeError: a dtype is not the one above.
    """
    checks.require_dtype("int8_linear", torch.int8, x=x, weight=weight)
    checks.require_dtype("int8_linear", torch.float32, x_scale=x_scale, weight_scale=weight_scale)
    checks.require_matrix("int8_linear", x=x, weight=weight)
    if x.shape[1] > MOST_CHANNELS:
        raise ValueError(f"int8_linear takes at most {MOST_CHANNELS} channels: x has {x.shape[1]}")
    outputs = weight.shape[:1]
    checks.require_shape("int8_linear", (*outputs, x.shape[1]), weight=weight)
    checks.require_shape("int8_linear", x.shape[:1], x_scale=x_scale)
    checks.require_shape("int8_linear", outputs, weight_scale=weight_scale)
    named = {"x": x, "x_scale": x_scale, "weight": weight, "weight_scale": weight_scale}
    if bias is not None:
        checks.require_floats("int8_linear", bias=bias)
        checks.require_shape("int8_linear", outputs, bias=bias)
        named["bias"] = bias
    checks.require_same_device("int8_linear", **named)
    checks.require_floats("int8_linear", result=torch.empty(0, dtype=dtype, device="meta"))
    return _int8_linear(x, x_scale, weight, weight_scale, bias, dtype)


@torch.library.custom_op("accel::quantize_int8", mutates_args=())
def _quantize_int8(x: Tensor, rotate: bool) -> tuple[Tensor, Tensor]:
    return implementation(__name__, x).quantize_int8(x, rotate)


@_quantize_int8.register_fake
def _(x: Tensor, rotate: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:1], dtype=torch.float32)


@torch.library.custom_op("accel::int8_linear", mutates_args=())
def _int8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return implementation(__name__, x).int8_linear(x, x_scale, weight, weight_scale, bias, dtype)


@_int8_linear.register_fake
def _(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)
