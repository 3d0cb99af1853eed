"""INT8 on a CPU: pieces that stay in the cache between torch's integer product and its scaling.

On x86 that product is exact only where the CPU has VNNI: without it, oneDNN adds pairs of products in 16 bits, which
saturate. The product is tried once for that, and made of float32 products where it fails.
"""

import functools

import torch
from torch import Tensor

from accel.kernels.int8.reference import LARGEST, SMALLEST
from accel.kernels.rotation import BLOCK
from accel.kernels.rotation.cpu import pieces, rotated_blocks, turned_back

# Numbers of a piece of the quantizer.
_PIECE = 1 << 18
# Rows of a piece of the product: more make the product faster, fewer its scaling.
_ROWS = 512
# So many products of two int8 add up to at most 2²⁴, up to where float32 holds every integer.
_EXACT_CHANNELS = 1024


@functools.cache
def has_integer_product() -> bool:
    """Whether torch's product of integers is exact on this CPU, and made by oneDNN: its own loops are slower than
    float32. Tried, since what oneDNN may use can be limited (`ONEDNN_MAX_CPU_ISA`) without torch's knowing of it."""
    if not torch.backends.mkldnn.is_available():
        return False
    rows = torch.full((64, 256), 127, dtype=torch.int8, device="cpu")
    rows[1::2] = -127
    return torch.equal(torch._int_mm(rows, rows.t()).double(), rows.double() @ rows.t().double())


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
        _multiply(x[piece], weight, sums[:count])
        into = result[piece] if dtype == torch.float32 else scaled[:count]
        torch.mul(sums[:count], x_scale[piece, None], out=into).mul_(weight_scale)
        if added is not None:
            into.add_(added)
        if dtype != torch.float32:
            result[piece] = into
    return result


def _multiply(x: Tensor, weight: Tensor, into: Tensor) -> None:
    """x weightᵀ into a matrix in int32, exactly."""
    if has_integer_product():
        torch._int_mm(x, weight.t(), out=into)
        return
    into.zero_()
    products = torch.empty(into.shape, dtype=torch.float32)
    for first in range(0, x.shape[1], _EXACT_CHANNELS):
        run = slice(first, first + _EXACT_CHANNELS)
        into += torch.mm(x[:, run].float(), weight[:, run].float().t(), out=products).int()
