"""NVFP4 on a CPU: a few rows at a time, so that what is made on the way stays in the cache."""

import torch
from torch import Tensor

from accel.kernels.int8 import cpu as int8
from accel.kernels.nvfp4.reference import GROUP, MAGNITUDES, group_scales, tensor_scale
from accel.kernels.rotation.cpu import rotated

__all__ = ["dequantize_nvfp4", "nvfp4_to_int8", "quantize_nvfp4", "tensor_scale"]

# Numbers of a piece.
_PIECE = 1 << 16
_SIGNED = (*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES))
# The two numbers of each byte.
_PAIRS = torch.tensor(
    [(_SIGNED[byte & 15], _SIGNED[byte >> 4]) for byte in range(256)], dtype=torch.float32, device="cpu"
)
_MAGNITUDES = torch.tensor(MAGNITUDES, dtype=torch.float32, device="cpu")


def quantize_nvfp4(x: Tensor, tensor_scale: Tensor, by_error: bool, rotate: bool) -> tuple[Tensor, Tensor]:
    rows, channels = x.shape
    codes = torch.empty((rows, channels // 2), dtype=torch.uint8)
    scales = torch.empty((rows, channels // GROUP), dtype=torch.float8_e4m3fn)
    for piece in _pieces(rows, channels):
        values = (rotated(x[piece]) if rotate else x[piece].float()).unflatten(1, (-1, GROUP))
        largest = values.abs().amax(2, keepdim=True)
        chosen = group_scales(largest, 6.0, tensor_scale)
        units = _quotients(values, chosen, tensor_scale)
        if by_error:
            others = group_scales(largest, 4.0, tensor_scale)
            other_units = _quotients(values, others, tensor_scale)
            less = _squared_error(other_units, others) < _squared_error(units, chosen)
            chosen, units = torch.where(less, others, chosen), torch.where(less, other_units, units)
        scales[piece] = chosen.squeeze(2).to(torch.float8_e4m3fn)
        each = _codes(units).flatten(1)
        torch.bitwise_or(each[:, ::2], each[:, 1::2] << 4, out=codes[piece])
    return codes, scales


def _pieces(rows: int, channels: int) -> list[slice]:
    step = max(_PIECE // max(channels, 1), 1)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _quotients(values: Tensor, scales: Tensor, tensor_scale: Tensor) -> Tensor:
    factors = torch.where(scales > 0, 1.0 / (scales * tensor_scale), 0.0)
    return torch.where(scales > 0, values * factors, 0.0)


def _codes(units: Tensor) -> Tensor:
    signs = units.signbit().to(torch.uint8) << 3
    return signs.add_(_magnitude_codes(units.abs()).to(torch.uint8))


def _magnitude_codes(magnitudes: Tensor) -> Tensor:
    # The codes stand half apart up to 2, one apart up to 4 and two apart up to 6: three rounded lines, the lowest.
    codes = (magnitudes * 2).round_()
    codes = torch.minimum(codes, magnitudes.round().add_(2), out=codes)
    return torch.minimum(codes, (magnitudes * 0.5).round_().add_(4), out=codes).clamp_(max=7)


def _squared_error(units: Tensor, scales: Tensor) -> Tensor:
    magnitudes = units.abs()
    nearest = _MAGNITUDES[_magnitude_codes(magnitudes).to(torch.int32)]
    errors = magnitudes.sub_(nearest).mul_(scales).square_()
    while errors.shape[2] > 1:
        errors = errors[..., ::2] + errors[..., 1::2]
    return errors


def _unscaled(codes: Tensor, scales: Tensor) -> Tensor:
    numbers = _PAIRS[codes.int()].view(codes.shape[0], -1, GROUP)
    return numbers.mul_(scales.float().unsqueeze(2)).flatten(1)


def dequantize_nvfp4(codes: Tensor, scales: Tensor, tensor_scale: Tensor, dtype: torch.dtype) -> Tensor:
    rows, channels = codes.shape[0], codes.shape[1] * 2
    result = torch.empty((rows, channels), dtype=dtype)
    for piece in _pieces(rows, channels):
        result[piece] = _unscaled(codes[piece], scales[piece]).mul_(tensor_scale)
    return result


def nvfp4_to_int8(codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> tuple[Tensor, Tensor]:
    rows, channels = codes.shape[0], codes.shape[1] * 2
    result, row_scales = torch.empty((rows, channels), dtype=torch.int8), torch.empty(rows, dtype=torch.float32)
    for piece in _pieces(rows, channels):
        result[piece], row_scales[piece] = int8.quantize_int8(_unscaled(codes[piece], scales[piece]), False)
    return result, row_scales.mul_(tensor_scale)
