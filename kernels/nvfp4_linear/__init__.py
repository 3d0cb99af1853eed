"""Products with a weight in NVFP4: with activations in NVFP4 too, or with activations of 16 bits or more.

The weight stays in 4.5 bits a number, and is decoded inside of the product. GPUs of the compute capabilities `NATIVE`
multiply two such matrices by themselves; everywhere else both are decoded first, which gives the same numbers and saves
no time. The group scales and codes are those of `accel.kernels.nvfp4`.
"""

import torch
from torch import Tensor

from accel.kernels import checks
from accel.kernels.forms import implementation, without_autocast
from accel.kernels.nvfp4 import require_nvfp4, require_quantizable

__all__ = ["NATIVE", "nvfp4_linear", "nvfp4_weight_linear", "rounding_nvfp4_linear"]

# Compute capabilities, times ten, whose tensor cores multiply NVFP4, and for which Triton uses them.
NATIVE = (100, 103, 120)


def nvfp4_linear(
    x_codes: Tensor,
    x_scales: Tensor,
    x_tensor_scale: Tensor,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """x weightᵀ + bias of two NVFP4 matrices: every product of code * group scale is exact, the sum is float32.

    For inference: no gradient is defined.

    Args:
        x_codes, x_scales, x_tensor_scale: (rows, channels) as `quantize_nvfp4` returns it; contiguous or strided.
        codes, scales, tensor_scale: the weight (outputs, channels), likewise.
        bias: (outputs,) in float16, bfloat16, float32 or float64.
        dtype: of the result, one of the four.

    Returns:
        A new contiguous matrix (rows, outputs). A NaN among the group scales of a row makes its results NaN.

    Raises:
        ValueError: shapes or devices do not fit, or the forced form cannot run.
        TypeError: a dtype is not the one above.
    """
    require_nvfp4("nvfp4_linear", x_codes, x_scales, x_tensor_scale)
    _require_weight("nvfp4_linear", x_codes, x_codes.shape[1] * 2, codes, scales, tensor_scale, bias)
    checks.require_floats("nvfp4_linear", result=torch.empty(0, dtype=dtype, device="meta"))
    return _nvfp4_linear(x_codes, x_scales, x_tensor_scale, codes, scales, tensor_scale, bias, dtype)


def rounding_nvfp4_linear(
    x: Tensor,
    x_tensor_scale: Tensor,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None = None,
    *,
    rotate: bool = False,
) -> tuple[Tensor, Tensor]:
    """`nvfp4_linear` on what `quantize_nvfp4` makes of x with a tensor scale that is a power of two.

    Where a product of codes is no instruction, the activations need not become codes: they are rounded to the numbers
    that their codes would stand for. For inference: no gradient is defined.

    Args:
        x: (rows, channels) in float16, bfloat16, float32 or float64, contiguous or strided, with channels a multiple
            of 16.
        x_tensor_scale: one float32, a power of two.
        codes, scales, tensor_scale: the weight (outputs, channels), as `quantize_nvfp4` returns it.
        bias: (outputs,) in one of the four dtypes.
        rotate: multiply blocks of 128 channels of x by H of `rotation` first, in float32.

    Returns:
        A new contiguous matrix (rows, outputs) in the dtype of x, and the largest group scale of x, float32: 0 where x
        has no numbers, NaN where one of them is not finite. Their rows of the result are NaN then.

    Raises:
        ValueError: shapes or devices do not fit, or the forced form cannot run.
        TypeError: a dtype is not the one above.
    """
    require_quantizable("rounding_nvfp4_linear", x, x_tensor_scale, rotate)
    _require_weight("rounding_nvfp4_linear", x, x.shape[1], codes, scales, tensor_scale, bias)
    return _rounding_nvfp4_linear(x, x_tensor_scale, rotate, codes, scales, tensor_scale, bias)


def nvfp4_weight_linear(
    x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """x weightᵀ + bias with a weight in NVFP4, for activations that stay as they are ("W4A16").

    The weight's code * group scale is exact in every dtype here; the sum is float32 (with x in float64, rounded to
    float32 first). For inference: no gradient is defined.

    Args:
        x: (rows, channels) in float16, bfloat16, float32 or float64, contiguous or strided.
        codes, scales, tensor_scale: the weight (outputs, channels), as `quantize_nvfp4` returns it.
        bias: (outputs,) in one of the four dtypes.

    Returns:
        A new contiguous matrix (rows, outputs) in the dtype of x.

    Raises:
        ValueError: shapes or devices do not fit, or the forced form cannot run.
        TypeError: a dtype is not the one above.
    """
    checks.require_floats("nvfp4_weight_linear", x=x)
    checks.require_matrix("nvfp4_weight_linear", x=x)
    _require_weight("nvfp4_weight_linear", x, x.shape[1], codes, scales, tensor_scale, bias)
    return _nvfp4_weight_linear(x, codes, scales, tensor_scale, bias)


def _require_weight(
    operation: str,
    x: Tensor,
    channels: int,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None,
) -> None:
    require_nvfp4(operation, codes, scales, tensor_scale)
    if codes.shape[1] * 2 != channels:
        raise ValueError(f"{operation} takes a weight of {channels} channels, as x has: it has {codes.shape[1] * 2}")
    named = {"x": x, "codes": codes}
    if bias is not None:
        checks.require_floats(operation, bias=bias)
        checks.require_shape(operation, (codes.shape[0],), bias=bias)
        named["bias"] = bias
    checks.require_same_device(operation, **named)


@torch.library.custom_op("accel::nvfp4_linear", mutates_args=())
def _nvfp4_linear(
    x_codes: Tensor,
    x_scales: Tensor,
    x_tensor_scale: Tensor,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    run = without_autocast(implementation(__name__, x_codes).nvfp4_linear)
    return run(x_codes, x_scales, x_tensor_scale, codes, scales, tensor_scale, bias, dtype)


@_nvfp4_linear.register_fake
def _(
    x_codes: Tensor,
    x_scales: Tensor,
    x_tensor_scale: Tensor,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return x_codes.new_empty((x_codes.shape[0], codes.shape[0]), dtype=dtype)


@torch.library.custom_op("accel::nvfp4_weight_linear", mutates_args=())
def _nvfp4_weight_linear(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor | None) -> Tensor:
    run = without_autocast(implementation(__name__, x).nvfp4_weight_linear)
    return run(x, codes, scales, tensor_scale, bias)


@_nvfp4_weight_linear.register_fake
def _(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], codes.shape[0]))


@torch.library.custom_op("accel::rounding_nvfp4_linear", mutates_args=())
def _rounding_nvfp4_linear(
    x: Tensor,
    x_tensor_scale: Tensor,
    rotate: bool,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    run = without_autocast(implementation(__name__, x).rounding_nvfp4_linear)
    return run(x, x_tensor_scale, rotate, codes, scales, tensor_scale, bias)


@_rounding_nvfp4_linear.register_fake
def _(
    x: Tensor,
    x_tensor_scale: Tensor,
    rotate: bool,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return x.new_empty((x.shape[0], codes.shape[0])), x.new_empty((), dtype=torch.float32)
