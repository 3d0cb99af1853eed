"""Products with NVFP4 weights in plain PyTorch: the specification that the other forms are tested against."""

import torch
from torch import Tensor

from accel.kernels.nvfp4.reference import unscaled


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


def nvfp4_weight_linear(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor | None) -> Tensor:
    result = (x.double() @ unscaled(codes, scales).double().T) * tensor_scale.double()
    return (result if bias is None else result + bias.double()).to(x.dtype)
