"""INT8 on a CPU: pieces that stay in the cache between torch's integer product and its scaling."""

import torch
from torch import Tensor

from accel.kernels.int8.reference import LARGEST, SMALLEST
from accel.kernels.rotation import BLOCK
from accel.kernels.rotation.cpu import pieces, rotated_blocks, turned_back

# Numbers of a piece of the quantizer.
_PIECE = 1 << 18
# Rows of a piece of the product: more make the product faster, fewer its scaling.
_ROWS = 512


def quantize_int8(x: Tensor, rotate: bool) -> tuple[Tensor, Tensor]:
    result = torch.empty(x.shape, dtype=torch.int8)
    scales = torch.full(x.shape[:1], SMALLEST / LARGEST, dtype=torch.float32)
    for piece in pieces(x, _PIECE):
        # Blocks that were rotated stand in columns, rows that were not in rows.
        values = rotated_blocks(x[piece]) if rotate else x[piece].float()
        largest = values.abs().amax(0 if rotate else 1).clamp_(min=SMALLEST)
        if rotate:
            largest = largest.view(scales[piece].shape[0], -1).amax(1)
        torch.div(largest, LARGEST, out=scales[piece])
        factors = torch.full_like(largest, LARGEST).div_(largest)
        if rotate:
            rounded = values.mul_(factors.repeat_interleave(x.shape[1] // BLOCK)).round_().to(torch.int8)
            turned_back(rounded, result[piece])
        else:
            result[piece] = torch.mul(values, factors[:, None]).round_()
        usable = largest.isfinite()
        if not usable.all():
            scales[piece][~usable] = torch.nan
            result[piece][~usable] = 0
    return result, scales


def int8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    rows, outputs = x.shape[0], weight.shape[0]
    result = torch.empty((rows, outputs), dtype=dtype)
    sums = torch.empty((min(_ROWS, rows), outputs), dtype=torch.int32)
    scaled = torch.empty(sums.shape, dtype=torch.float32)
    added = None if bias is None else bias.float()
    for start in range(0, rows, _ROWS):
        piece = slice(start, min(start + _ROWS, rows))
        count = piece.stop - start
        torch._int_mm(x[piece], weight.t(), out=sums[:count])
        into = result[piece] if dtype == torch.float32 else scaled[:count]
        torch.mul(sums[:count], x_scale[piece, None], out=into).mul_(weight_scale)
        if added is not None:
            into.add_(added)
        if dtype != torch.float32:
            result[piece] = into
    return result
