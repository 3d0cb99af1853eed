"""Products with NVFP4 weights on a CPU: a CPU has no instructions for them, so the numbers are decoded first.

A few output channels at a time, so that the decoded weights stay in the cache between the two steps.
"""

import torch
from torch import Tensor

from accel.kernels.nvfp4.cpu import dequantize_nvfp4, rounded

# Numbers of a piece of decoded weights.
PIECE = 1 << 18


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
    x = dequantize_nvfp4(x_codes, x_scales, x_tensor_scale, torch.float32)
    return _product(x, codes, scales, tensor_scale, bias).to(dtype)


def rounding_nvfp4_linear(
    x: Tensor,
    x_tensor_scale: Tensor,
    rotate: bool,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    numbers, largest_scale = rounded(x, x_tensor_scale, rotate)
    return _product(numbers, codes, scales, tensor_scale, bias).to(x.dtype), largest_scale


def nvfp4_weight_linear(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor | None) -> Tensor:
    return _product(x.float(), codes, scales, tensor_scale, bias).to(x.dtype)


def _product(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor | None) -> Tensor:
    outputs = codes.shape[0]
    result = torch.empty((x.shape[0], outputs), dtype=torch.float32)
    step = max(PIECE // max(x.shape[1], 1), 1)
    for start in range(0, outputs, step):
        piece = slice(start, start + step)
        weight = dequantize_nvfp4(codes[piece], scales[piece], tensor_scale, torch.float32)
        torch.mm(x, weight.T, out=result[:, piece])
    return result if bias is None else result.add_(bias.float())
