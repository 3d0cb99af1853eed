"""INT8 in plain PyTorch: the specification that the other forms are tested against, bit for bit."""

import torch
from torch import Tensor

from accel.kernels.rotation.reference import rotated

LARGEST = 127.0
# What a row's largest magnitude is at least taken to be, so that 127 over it stays finite.
SMALLEST = 2.0**-100


def quantize_int8(x: Tensor, rotate: bool) -> tuple[Tensor, Tensor]:
    values = rotated(x) if rotate else x.float()
    if values.shape[1] == 0:
        return values.to(torch.int8), values.new_full(values.shape[:1], SMALLEST) / LARGEST
    largest = values.abs().amax(1).clamp(min=SMALLEST)
    whole = torch.full_like(largest, LARGEST)
    usable = largest.isfinite()
    rounded = (values * (whole / largest)[:, None]).round()
    rounded = torch.where(usable[:, None], rounded, 0.0)
    return rounded.to(torch.int8), torch.where(usable, largest / whole, torch.nan)


def int8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    # float64 holds every sum of products exactly.
    sums = (x.double() @ weight.double().T).float()
    result = sums * x_scale[:, None] * weight_scale
    return (result if bias is None else result + bias.float()).to(dtype)
