"""NVFP4 in plain PyTorch: the specification that the other forms are tested against, bit for bit."""

import torch
from torch import Tensor

from accel.kernels.int8 import reference as int8
from accel.kernels.rotation.reference import rotated

# Numbers that share a scale, along the channels.
GROUP = 16
# The largest E2M1 and E4M3.
LARGEST_CODE, LARGEST_SCALE = 6.0, 448.0
# The magnitude of each code, and the number from which on a magnitude gets the next one. Half-way goes to the even
# code: up to an odd code only what is above.
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_ABOVE = (0.25, 1.25, 2.5, 5.0)
_FROM = (0.75, 1.75, 3.5)
_SMALLEST_TENSOR_SCALE = 2.0**-100


def quantize_nvfp4(x: Tensor, tensor_scale: Tensor, by_error: bool, rotate: bool) -> tuple[Tensor, Tensor]:
    values = (rotated(x) if rotate else x.float()).unflatten(1, (-1, GROUP))
    largest = values.abs().amax(2, keepdim=True)
    scales = group_scales(largest, 6.0, tensor_scale)
    if by_error:
        others = group_scales(largest, 4.0, tensor_scale)
        less = _squared_error(values, others, tensor_scale) < _squared_error(values, scales, tensor_scale)
        scales = torch.where(less, others, scales)
    codes = encode(quotients(values, scales, tensor_scale)).flatten(1)
    return codes[:, ::2] | (codes[:, 1::2] << 4), scales.squeeze(2).to(torch.float8_e4m3fn)


def tensor_scale(x: Tensor, by_error: bool) -> Tensor:
    """What the largest magnitude of all asks for; NaN where it is not finite."""
    if x.numel() == 0:
        return torch.ones((), dtype=torch.float32, device=x.device)
    largest = x.abs().amax().float()
    # A division by a number would be a product with its reciprocal on a GPU.
    scale = largest / torch.full_like(largest, LARGEST_CODE * (256.0 if by_error else LARGEST_SCALE))
    scale = torch.where(largest == 0, 1.0, scale.clamp(min=_SMALLEST_TENSOR_SCALE))
    return torch.where(largest.isfinite(), scale, torch.nan)


def group_scales(largest: Tensor, code: float, tensor_scale: Tensor) -> Tensor:
    """The E4M3 with which a group's largest magnitude comes nearest to `code`, as float32."""
    wanted = (largest / (code * tensor_scale)).clamp(max=LARGEST_SCALE)
    usable = largest.isfinite() & (tensor_scale > 0) & tensor_scale.isfinite()
    return torch.where(usable, wanted.to(torch.float8_e4m3fn).float(), torch.nan)


def quotients(values: Tensor, scales: Tensor, tensor_scale: Tensor) -> Tensor:
    """The numbers in units of their scales; 0 where a scale is 0 or NaN."""
    return torch.where(scales > 0, values * (1.0 / (scales * tensor_scale)), 0.0)


def encode(values: Tensor) -> Tensor:
    """The nearest E2M1, a code to a byte: the sign in bit 3."""
    magnitudes = values.abs()
    codes = values.signbit().to(torch.uint8) * 8
    for limit in _ABOVE:
        codes += magnitudes > limit
    for limit in _FROM:
        codes += magnitudes >= limit
    return codes


def _squared_error(values: Tensor, scales: Tensor, tensor_scale: Tensor) -> Tensor:
    """Of each group, in units of the tensor scale, summed in a fixed order: neighbours, then their sums."""
    units = quotients(values, scales, tensor_scale)
    errors = ((units - _decode(encode(units))) * scales).square()
    while errors.shape[2] > 1:
        errors = errors[..., ::2] + errors[..., 1::2]
    return errors


def _decode(codes: Tensor) -> Tensor:
    magnitudes = torch.tensor(MAGNITUDES, dtype=torch.float32, device=codes.device)[(codes & 7).long()]
    return torch.where(codes > 7, -magnitudes, magnitudes)


def unscaled(codes: Tensor, scales: Tensor) -> Tensor:
    """code * group scale, which float32, bfloat16 and float16 hold exactly: (rows, channels) in float32."""
    each = torch.stack([codes & 15, codes >> 4], dim=2).flatten(1)
    return _decode(each) * scales.float().repeat_interleave(GROUP, dim=1)


def dequantize_nvfp4(codes: Tensor, scales: Tensor, tensor_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (unscaled(codes, scales) * tensor_scale).to(dtype)


def nvfp4_to_int8(codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> tuple[Tensor, Tensor]:
    rounded, row_scales = int8.quantize_int8(unscaled(codes, scales), False)
    return rounded, row_scales * tensor_scale
