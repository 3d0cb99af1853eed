"""NVFP4 on a CPU: a few rows at a time, so that what is made on the way stays in the cache.

The rows are turned so that a group, or a block that is rotated, stands in a column: whatever is done to a group is then
done to long runs of neighbours.
"""

import torch
from torch import Tensor

from accel.kernels.int8 import cpu as int8
from accel.kernels.nvfp4.reference import GROUP, LARGEST_CODE, MAGNITUDES, group_scales, tensor_scale
from accel.kernels.rotation.cpu import pieces, rotated_blocks, turned, turned_back

__all__ = ["dequantize_nvfp4", "nvfp4_to_int8", "quantize_nvfp4", "rounded", "tensor_scale"]

# Numbers of a piece.
_PIECE = 1 << 17
_SIGNED = (*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES))
# The two numbers of each byte, in one of 64 bits, so that a table look-up moves both.
_PAIRS = torch.tensor(
    [(_SIGNED[byte & 15], _SIGNED[byte >> 4]) for byte in range(256)], dtype=torch.float32, device="cpu"
).view(torch.int64)[:, 0]
# Without the mantissa and the sign, what is left of a float32 is a power of two.
_EXPONENT = 0x7F800000
# A float32 that is 1.5 * 2²² times a power of two has no places below half of that power.
_NO_PLACES = 1.5 * 2.0**22


def quantize_nvfp4(x: Tensor, tensor_scale: Tensor, by_error: bool, rotate: bool) -> tuple[Tensor, Tensor]:
    rows, channels = x.shape
    codes = torch.empty((rows, channels // 2), dtype=torch.uint8)
    scales = torch.empty((rows, channels // GROUP), dtype=torch.float8_e4m3fn)
    for piece in pieces(x, _PIECE):
        values = _groups(x[piece], rotate)
        largest = values.abs().amax(1, keepdim=True)
        chosen = group_scales(largest, LARGEST_CODE, tensor_scale)
        if by_error:
            others = group_scales(largest, 4.0, tensor_scale)
            errors, other_errors = (_squared_error(values, each, tensor_scale) for each in (chosen, others))
            chosen = torch.where(other_errors < errors, others, chosen)
        units = values.mul_(_factors(chosen, tensor_scale))
        each = _codes(units).mul_(chosen > 0)
        pairs = each[:, ::2].bitwise_or_(each[:, 1::2] << 4)
        turned_back(chosen[:, 0], scales[piece])
        turned_back(pairs.flatten(0, 1), codes[piece])
    return codes, scales


def rounded(x: Tensor, tensor_scale: Tensor, rotate: bool) -> tuple[Tensor, Tensor]:
    """What `quantize_nvfp4` and `dequantize_nvfp4` make of a matrix in float32, without the way over the codes, and the
    largest group scale. The bits are theirs where the tensor scale is a power of two."""
    result = torch.empty(x.shape, dtype=torch.float32)
    largest_scale = torch.zeros((), dtype=torch.float32)
    for piece in pieces(x, _PIECE):
        values = _groups(x[piece], rotate)
        scales = group_scales(values.abs().amax(1, keepdim=True), LARGEST_CODE, tensor_scale)
        values = _nearest(values.mul_(_factors(scales, tensor_scale))).mul_(scales * tensor_scale)
        turned_back(values.flatten(0, 1), result[piece])
        # A maximum with a NaN is NaN.
        largest_scale = torch.maximum(largest_scale, scales.amax())
    return result, largest_scale


def _groups(x: Tensor, rotate: bool) -> Tensor:
    """A few rows, rotated or not: (groups of a column, number of a group, columns)."""
    return (rotated_blocks(x) if rotate else turned(x, GROUP)).unflatten(0, (-1, GROUP))


def _factors(scales: Tensor, tensor_scale: Tensor) -> Tensor:
    """What makes units of the numbers of a group."""
    return torch.where(scales > 0, 1.0 / (scales * tensor_scale), 0.0)


def _nearest(units: Tensor) -> Tensor:
    """The nearest E2M1 of each number, as a float32; where that is 0, without a sign."""
    # The distance to the next number is half of the power of two below, of 1 at least and 4 at most.
    powers = units.view(torch.int32).bitwise_and(_EXPONENT).view(torch.float32).clamp_(1.0, 4.0)
    return torch.add(units, powers, alpha=_NO_PLACES).sub_(powers, alpha=_NO_PLACES).clamp_(-LARGEST_CODE, LARGEST_CODE)


def _codes(units: Tensor) -> Tensor:
    magnitudes = _nearest(units).abs_()
    # The codes stand half apart up to 2, one apart up to 4 and two apart up to 6: three lines, the lowest.
    codes = torch.minimum(magnitudes * 2, magnitudes + 2)
    codes = torch.minimum(codes, magnitudes.mul_(0.5).add_(4), out=codes).to(torch.uint8)
    return codes.bitwise_or_(units.signbit().to(torch.uint8) << 3)


def _squared_error(values: Tensor, scales: Tensor, tensor_scale: Tensor) -> Tensor:
    units = values * _factors(scales, tensor_scale)
    errors = units.sub_(_nearest(units)).mul_(scales).square_()
    while errors.shape[1] > 1:
        errors = errors[:, ::2] + errors[:, 1::2]
    return errors


def _unscaled(codes: Tensor, scales: Tensor) -> Tensor:
    numbers = _PAIRS[codes.int()].view(torch.float32).view(codes.shape[0], -1, GROUP)
    return numbers.mul_(scales.float().unsqueeze(2)).flatten(1)


def dequantize_nvfp4(codes: Tensor, scales: Tensor, tensor_scale: Tensor, dtype: torch.dtype) -> Tensor:
    result = torch.empty((codes.shape[0], codes.shape[1] * 2), dtype=dtype)
    for piece in pieces(result, _PIECE):
        result[piece] = _unscaled(codes[piece], scales[piece]).mul_(tensor_scale)
    return result


def nvfp4_to_int8(codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> tuple[Tensor, Tensor]:
    rows, channels = codes.shape[0], codes.shape[1] * 2
    result = torch.empty((rows, channels), dtype=torch.int8)
    row_scales = torch.full((rows,), int8.SMALLEST / int8.LARGEST, dtype=torch.float32)
    for piece in pieces(result, _PIECE):
        result[piece], row_scales[piece] = int8.quantize_int8(_unscaled(codes[piece], scales[piece]), False)
    return result, row_scales.mul_(tensor_scale)
