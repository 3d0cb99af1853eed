"""The block rotation as a Triton kernel, and as a function that the quantizers' kernels call."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.forms import on_device
from accel.kernels.rotation.reference import BLOCK

# Rows of a tile, of one block of channels each.
ROWS = 16
WARPS = 4


@triton.jit
def _stage(values, APART: tl.constexpr):
    """Sums and differences of the channels that are this far apart: (rows, 128)."""
    ROWS: tl.constexpr = values.shape[0]
    BLOCK: tl.constexpr = values.shape[1]
    pairs = tl.reshape(values, (ROWS, BLOCK // (2 * APART), 2, APART))
    first, second = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    return tl.reshape(tl.permute(tl.join(first + second, first - second), (0, 1, 3, 2)), (ROWS, BLOCK))


@triton.jit
def rotated(values):
    """Each row of 128 float32 numbers times H, in the order of the reference."""
    values = _stage(values, 1)
    values = _stage(values, 2)
    values = _stage(values, 4)
    values = _stage(values, 8)
    values = _stage(values, 16)
    values = _stage(values, 32)
    return _stage(values, 64)


@triton.jit
def _rotate(x, result, rows, channels, row_stride, scale, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None]
    values = tl.load(x + row[:, None] * row_stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    values = rotated(values) * scale
    tl.store(result + row[:, None] * channels + channel[None, :], values.to(result.dtype.element_ty), mask=inside)


def rotate(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    result = torch.empty(x.shape, dtype=dtype, device=x.device)
    if result.numel() == 0:
        return result
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, channels = x.shape
    with on_device(x):
        _rotate[(triton.cdiv(rows, ROWS), channels // BLOCK)](
            x,
            result,
            rows,
            channels,
            x.stride(0),
            scale,
            ROWS=ROWS,
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return result
