"""Products with NVFP4 weights in plain PyTorch: the specification that the other forms are tested against."""

import torch
from torch import Tensor

from accel.kernels.nvfp4.reference import quantize_nvfp4, unscaled


def nvfp4_linear(
    x_codes: Tensor,
    x_scales: Tensor,
    x_tensor_scale: Tensor,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    x, weight = unscaled(x_codes, x_scales).double(), unscaled(codes, scales).double()
    result = (x @ weight.T) * (x_tensor_scale * tensor_scale).double()
    return (result if bias is None else result + bias.double()).to(dtype)


def rounding_nvfp4_linear(
    x: Tensor,
    x_tensor_scale: Tensor,
    rotate: bool,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    x_codes, x_scales = quantize_nvfp4(x, x_tensor_scale, False, rotate)
    result = nvfp4_linear(x_codes, x_scales, x_tensor_scale, codes, scales, tensor_scale, bias, x.dtype)
    return result, largest_scale(x_scales)


def largest_scale(scales: Tensor) -> Tensor:
    """The largest of some group scales, 0 where there are none; NaN where one is."""
    if not scales.numel():
        return scales.new_zeros((), dtype=torch.float32)
    # Without a sign, larger ones are larger bytes, and a NaN is the largest: no copy of all is made in float32.
    return scales.view(torch.uint8).amax().view(torch.float8_e4m3fn).float()


def nvfp4_weight_linear(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor | None) -> Tensor:
    result = (x.double() @ unscaled(codes, scales).double().T) * tensor_scale.double()
    return (result if bias is None else result + bias.double()).to(x.dtype)
