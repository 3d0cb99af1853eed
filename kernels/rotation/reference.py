"""The block rotation in plain PyTorch: the specification that the other forms are tested against."""

import torch
from torch import Tensor

BLOCK = 128


def rotate(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return (rotated(x) * scale).to(dtype).contiguous()


def rotated(x: Tensor) -> Tensor:
    """x H in float32, of any shape whose last axis 128 divides."""
    values, apart = x.float(), 1
    while apart < BLOCK:
        pairs = values.reshape(-1, 2, apart)
        first, second = pairs[:, 0], pairs[:, 1]
        values = torch.stack([first + second, first - second], dim=1)
        apart *= 2
    return values.reshape(x.shape)
