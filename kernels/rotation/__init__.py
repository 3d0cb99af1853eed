"""The block Hadamard rotation, which spreads a channel's outliers over its block of 128 channels.

QuaRot (Ashkboos et al. 2024, arXiv 2404.00456): with an orthogonal R, (x R)(W R)ᵀ = x Wᵀ, and x R has no outlier
channels left to quantize. R is the Sylvester-Hadamard matrix H of +1 and -1 in blocks along the channels. H Hᵀ = 128,
so 1/128 goes to one side, a power of two: rotate(x) @ rotate(W, 1 / BLOCK)ᵀ = x Wᵀ.
"""

import torch
from torch import Tensor

from accel.kernels import checks
from accel.kernels.forms import implementation
from accel.kernels.rotation.reference import BLOCK

__all__ = ["BLOCK", "require_rotatable", "rotate"]


def rotate(x: Tensor, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
    """`scale * (x H)` for each run of 128 channels, by seven stages of sums and differences in float32.

    QuaRot, arXiv 2404.00456. The stages go from neighbouring channels to those 64 apart; every form adds in that
    order, so all give the same bits. Integers below 2¹⁷ stay exact. For inference: no gradient is defined.

    Args:
        x: (rows, channels) in float16, bfloat16, float32 or float64 (rounded to float32), contiguous or strided, with
            channels a multiple of 128.
        scale: a factor for the result; powers of two are exact, and 1/128 makes `rotate` its own inverse.
        dtype: of the result, one of the four; without it, that of x. A sum can be 128 times as large as what it is
            of: float16 may not hold it without a scale below 1.

    Returns:
        A new contiguous tensor of the shape of x, rounded once. A NaN or an infinity reaches all of its 128 channels.

    Raises:
        ValueError: x is not a matrix, or 128 does not divide its channels, or the forced form cannot run on its device.
        TypeError: a dtype is not among the four.
    """
    wanted = x.dtype if dtype is None else dtype
    checks.require_floats("rotate", x=x, result=torch.empty(0, dtype=wanted, device="meta"))
    checks.require_matrix("rotate", x=x)
    require_rotatable("rotate", x)
    return _rotate(x, scale, wanted)


def require_rotatable(operation: str, x: Tensor) -> None:
    """Raise ValueError unless 128 divides the channels of x."""
    if x.shape[-1] % BLOCK:
        raise ValueError(f"{operation} rotates blocks of {BLOCK} channels: x has {x.shape[-1]}; leave it unrotated")


@torch.library.custom_op("accel::rotate", mutates_args=())
def _rotate(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return implementation(__name__, x).rotate(x, scale, dtype)


@_rotate.register_fake
def _(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
