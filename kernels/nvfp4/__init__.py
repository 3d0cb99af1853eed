"""NVFP4: 4-bit floats in groups of 16, each group with a scale of 8 bits, each tensor with one of 32.

The format is that of NVIDIA's block-scaled tensor cores. A number is code * group scale * tensor scale. The codes are
E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, two to a byte, the even channel in the low half. The group
scales are E4M3 (at most 448), and the tensor scale is float32: 4.5 bits for each number.
"""

import torch
from torch import Tensor

from accel.kernels import checks
from accel.kernels.forms import implementation
from accel.kernels.nvfp4.layout import swizzle_scales, unswizzle_scales
from accel.kernels.nvfp4.reference import GROUP
from accel.kernels.rotation import require_rotatable

__all__ = ["GROUP", "dequantize_nvfp4", "nvfp4_to_int8", "quantize_nvfp4", "swizzle_scales", "unswizzle_scales"]


def quantize_nvfp4(
    x: Tensor, tensor_scale: Tensor | None = None, *, by_error: bool = False, rotate: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix in NVFP4, rounded to nearest even; with `rotate`, the matrix times H of `rotation`.

    A group's scale is its largest magnitude over 6 and the tensor scale, in E4M3. With `by_error`, the one that has 4
    in the place of 6 is taken where its squared error is less: "Four Over Six" (Cook et al. 2025, arXiv 2512.02010).
    What is lost: at most 3/17 of the group's largest magnitude where the group scale is 2⁻⁶ or more and 448 holds it.
    For inference: no gradient is defined.

    Args:
        x: (rows, channels) in float16, bfloat16, float32 or float64 (rounded to float32), contiguous or strided, with
            channels a multiple of 16.
        tensor_scale: one float32 above 0, on the device of x. With a power of two, fixed in advance, the result for
            a row depends on that row alone. Magnitudes above 6 * 448 times it become that. Without it, the scale is
            the largest magnitude over 6 * 448, or over 6 * 256 with `by_error`, which leaves room for either choice
            (1 for zeros, at least 2⁻¹⁰⁰).
        by_error: choose between 6 and 4 by the group's squared error, as is worth while for weights.
        rotate: multiply blocks of 128 channels by H first, in float32; needs a tensor scale.

    Returns:
        Codes, uint8 (rows, channels / 2); group scales, float8_e4m3fn (rows, channels / 16); the tensor scale.
        A group that holds a NaN or an infinity has the scale NaN, and so do all groups where the tensor scale is not
        finite and above 0: they come back as NaN.

    Raises:
        ValueError: shapes or devices do not fit, `rotate` has no tensor scale, or the forced form cannot run.
        TypeError: a dtype is not among those above.
    """
    require_quantizable("quantize_nvfp4", x, tensor_scale, rotate)
    codes, scales, made = _quantize_nvfp4(x, tensor_scale, by_error, rotate)
    return codes, scales, made if tensor_scale is None else tensor_scale


def dequantize_nvfp4(codes: Tensor, scales: Tensor, tensor_scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers of an NVFP4 matrix: (code * group scale) * tensor scale in float32, rounded once to `dtype`.

    Args:
        codes, scales, tensor_scale: as `quantize_nvfp4` returns them; contiguous or strided.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        A new contiguous matrix (rows, channels). Quantizing it again with the tensor scale gives the same numbers.

    Raises:
        ValueError: shapes or devices do not fit, or the forced form cannot run.
        TypeError: a dtype is not the one above.
    """
    require_nvfp4("dequantize_nvfp4", codes, scales, tensor_scale)
    checks.require_floats("dequantize_nvfp4", result=torch.empty(0, dtype=dtype, device="meta"))
    return _dequantize_nvfp4(codes, scales, tensor_scale, dtype)


def nvfp4_to_int8(codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> tuple[Tensor, Tensor]:
    """An NVFP4 weight as the INT8 weight of `int8`, a scale for each row, without the way over a float matrix.

    6Bit-Diffusion (arXiv 2603.18742) keeps one NVFP4 weight and converts it where the activations are INT8. The row's
    largest magnitude is taken from the codes, since the largest code of a group may be 4. For inference.

    Args:
        codes, scales, tensor_scale: as `quantize_nvfp4` returns them; contiguous or strided.

    Returns:
        int8 (rows, channels) and float32 (rows,): at most half a scale is lost. A row with a NaN has the scale NaN.

    Raises:
        ValueError: shapes or devices do not fit, or the forced form cannot run.
        TypeError: a dtype is not the one that `quantize_nvfp4` returns.
    """
    require_nvfp4("nvfp4_to_int8", codes, scales, tensor_scale)
    return _nvfp4_to_int8(codes, scales, tensor_scale)


def require_quantizable(operation: str, x: Tensor, tensor_scale: Tensor | None, rotate: bool) -> None:
    """Raise ValueError or TypeError unless x can be made NVFP4 with that tensor scale."""
    checks.require_floats(operation, x=x)
    checks.require_matrix(operation, x=x)
    if x.shape[1] % GROUP:
        raise ValueError(f"{operation} takes channels in groups of {GROUP}: x has {x.shape[1]}; leave it as it is")
    if rotate:
        require_rotatable(operation, x)
        if tensor_scale is None:
            raise ValueError(f"{operation} rotates with a tensor scale given: give one, or call rotate(x) first")
    if tensor_scale is not None:
        _require_tensor_scale(operation, tensor_scale, x)


def require_nvfp4(operation: str, codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> None:
    """Raise ValueError or TypeError unless these are the three parts of one NVFP4 matrix."""
    checks.require_dtype(operation, torch.uint8, codes=codes)
    checks.require_dtype(operation, torch.float8_e4m3fn, scales=scales)
    checks.require_matrix(operation, codes=codes)
    if codes.shape[1] % (GROUP // 2):
        raise ValueError(f"{operation} takes {GROUP // 2} bytes of codes a group: a row has {codes.shape[1]}")
    checks.require_shape(operation, (codes.shape[0], codes.shape[1] * 2 // GROUP), scales=scales)
    checks.require_same_device(operation, codes=codes, scales=scales)
    _require_tensor_scale(operation, tensor_scale, codes)


def _require_tensor_scale(operation: str, tensor_scale: Tensor, beside: Tensor) -> None:
    checks.require_dtype(operation, torch.float32, tensor_scale=tensor_scale)
    checks.require_shape(operation, (), tensor_scale=tensor_scale)
    checks.require_same_device(operation, x=beside, tensor_scale=tensor_scale)


@torch.library.custom_op("accel::quantize_nvfp4", mutates_args=())
def _quantize_nvfp4(
    x: Tensor, tensor_scale: Tensor | None, by_error: bool, rotate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    form = implementation(__name__, x)
    made = form.tensor_scale(x, by_error) if tensor_scale is None else tensor_scale
    codes, scales = form.quantize_nvfp4(x, made, by_error, rotate)
    # An operation may not answer with what it was given: that scale is empty here, and the given one outside.
    return codes, scales, made if tensor_scale is None else made.new_empty(0)


@_quantize_nvfp4.register_fake
def _(x: Tensor, tensor_scale: Tensor | None, by_error: bool, rotate: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, channels = x.shape
    return (
        x.new_empty((rows, channels // 2), dtype=torch.uint8),
        x.new_empty((rows, channels // GROUP), dtype=torch.float8_e4m3fn),
        x.new_empty(() if tensor_scale is None else (0,), dtype=torch.float32),
    )


@torch.library.custom_op("accel::dequantize_nvfp4", mutates_args=())
def _dequantize_nvfp4(codes: Tensor, scales: Tensor, tensor_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return implementation(__name__, codes).dequantize_nvfp4(codes, scales, tensor_scale, dtype)


@_dequantize_nvfp4.register_fake
def _(codes: Tensor, scales: Tensor, tensor_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return codes.new_empty((codes.shape[0], codes.shape[1] * 2), dtype=dtype)


@torch.library.custom_op("accel::nvfp4_to_int8", mutates_args=())
def _nvfp4_to_int8(codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> tuple[Tensor, Tensor]:
    return implementation(__name__, codes).nvfp4_to_int8(codes, scales, tensor_scale)


@_nvfp4_to_int8.register_fake
def _(codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> tuple[Tensor, Tensor]:
    shape = (codes.shape[0], codes.shape[1] * 2)
    return codes.new_empty(shape, dtype=torch.int8), codes.new_empty(shape[:1], dtype=torch.float32)
