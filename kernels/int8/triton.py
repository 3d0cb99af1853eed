"""INT8 as Triton kernels: a row's maximum and its integers in one launch, and a product whose scaling is its end."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.forms import on_device
from accel.kernels.int8.reference import LARGEST, SMALLEST
from accel.kernels.int8.tiles import tile_for
from accel.kernels.rotation.reference import BLOCK
from accel.kernels.rotation.triton import rotated

# Channels that a program holds at once; a longer row is read twice.
PIECE = 8192


@triton.jit
def magnitude_bits(values):
    """Bits that are in the order of the magnitudes, with NaN above infinity: an integer maximum cannot lose it."""
    return values.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def usable_maximum(bits, SMALLEST: tl.constexpr):
    """The magnitude that these bits are, at least SMALLEST, and whether it is finite."""
    largest = bits.to(tl.float32, bitcast=True)
    return tl.maximum(largest, SMALLEST), largest < float("inf")


@triton.jit
def nearest_int8(values, factor, usable):
    """round(values * factor) to nearest even, which may not become one fused operation; 0 where not usable."""
    # 1.5 * 2²³: a sum with it has no fraction left.
    rounded = (values * factor + 12582912.0) - 12582912.0
    return tl.where(usable, rounded, 0.0).to(tl.int8)


@triton.jit
def _values(x, first, channels, ROTATES: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr):
    at = first + tl.arange(0, PIECE)
    values = tl.load(x + at, mask=at < channels, other=0.0).to(tl.float32)
    if ROTATES:
        values = tl.reshape(rotated(tl.reshape(values, (PIECE // BLOCK, BLOCK))), (PIECE,))
    return values


@triton.jit
def _quantize_int8(
    x,
    result,
    scales,
    channels,
    row_stride,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
    ROTATES: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
    FITS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x += row * row_stride
    result += row * channels
    if FITS:
        values = _values(x, 0, channels, ROTATES, PIECE, BLOCK)
        bits = tl.max(magnitude_bits(values), 0)
    else:
        bits_of = tl.zeros((PIECE,), tl.int32)
        for first in range(0, channels, PIECE):
            bits_of = tl.maximum(bits_of, magnitude_bits(_values(x, first, channels, ROTATES, PIECE, BLOCK)))
        bits = tl.max(bits_of, 0)
    largest, usable = usable_maximum(bits, SMALLEST)
    factor = tl.div_rn(LARGEST, largest)
    tl.store(scales + row, tl.where(usable, tl.div_rn(largest, LARGEST), float("nan")))
    at = tl.arange(0, PIECE)
    if FITS:
        tl.store(result + at, nearest_int8(values, factor, usable), mask=at < channels)
    else:
        for first in range(0, channels, PIECE):
            again = _values(x, first, channels, ROTATES, PIECE, BLOCK)
            tl.store(result + first + at, nearest_int8(again, factor, usable), mask=first + at < channels)


def warps_for(piece: int) -> int:
    """So many that a thread holds 16 numbers, which leaves room in its registers for the rotation."""
    return max(piece // 512, 1)


def quantize_int8(x: Tensor, rotate: bool) -> tuple[Tensor, Tensor]:
    rows, channels = x.shape
    result = torch.empty((rows, channels), dtype=torch.int8, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    if rows == 0:
        return result, scales
    x = x if channels == 0 or x.stride(1) == 1 else x.contiguous()
    piece = min(max(triton.next_power_of_2(channels), BLOCK), PIECE)
    with on_device(x):
        _quantize_int8[(rows,)](
            x,
            result,
            scales,
            channels,
            x.stride(0),
            LARGEST=LARGEST,
            SMALLEST=SMALLEST,
            ROTATES=rotate,
            PIECE=piece,
            BLOCK=BLOCK,
            FITS=channels <= piece,
            num_warps=warps_for(piece),
            enable_fp_fusion=False,
        )
    return result, scales


@triton.jit
def tile_of_program(rows, outputs, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, TOGETHER: tl.constexpr):
    """Which tile of the product this program makes: down a few tiles of rows before it goes along the outputs."""
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(outputs, OUTPUTS)
    program, group = tl.program_id(0), TOGETHER * across
    first = program // group * TOGETHER
    height = tl.minimum(down - first, TOGETHER)
    return first + program % group % height, program % group // height


@triton.jit
def _int8_linear(
    x,
    x_scale,
    weight,
    weight_scale,
    bias,
    result,
    rows,
    outputs,
    channels,
    x_stride,
    weight_stride,
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
):
    down, across = tile_of_program(rows, outputs, ROWS, OUTPUTS, TOGETHER)
    row, output = down * ROWS + tl.arange(0, ROWS), across * OUTPUTS + tl.arange(0, OUTPUTS)
    channel = tl.arange(0, CHANNELS)
    # Rows and outputs beyond the last read others again, and are not stored.
    x += (row % rows)[:, None].to(tl.int64) * x_stride + channel[None, :]
    weight += (output % outputs)[None, :].to(tl.int64) * weight_stride + channel[:, None]
    sums = tl.zeros((ROWS, OUTPUTS), tl.int32)
    for first in tl.range(0, channels, CHANNELS, num_stages=STAGES):
        if EVEN:
            left, right = tl.load(x), tl.load(weight)
        else:
            left = tl.load(x, mask=(channel < channels - first)[None, :], other=0)
            right = tl.load(weight, mask=(channel < channels - first)[:, None], other=0)
        sums = tl.dot(left, right, sums, out_dtype=tl.int32)
        x += CHANNELS
        weight += CHANNELS
    exists, wanted = row < rows, output < outputs
    values = sums.to(tl.float32) * tl.load(x_scale + row, mask=exists, other=0.0)[:, None]
    values *= tl.load(weight_scale + output, mask=wanted, other=0.0)[None, :]
    if HAS_BIAS:
        values += tl.load(bias + output, mask=wanted, other=0.0).to(tl.float32)[None, :]
    at = result + row[:, None].to(tl.int64) * outputs + output[None, :]
    tl.store(at, values.to(result.dtype.element_ty), mask=exists[:, None] & wanted[None, :])


def int8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    rows, channels = x.shape
    outputs = weight.shape[0]
    result = torch.empty((rows, outputs), dtype=dtype, device=x.device)
    if result.numel() == 0:
        return result
    x, weight = (matrix if channels == 0 or matrix.stride(1) == 1 else matrix.contiguous() for matrix in (x, weight))
    with on_device(x):
        tile = tile_for("int8")
        grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs),)
        _int8_linear[grid](
            x,
            x_scale.contiguous(),
            weight,
            weight_scale.contiguous(),
            weight_scale if bias is None else bias.contiguous(),
            result,
            rows,
            outputs,
            channels,
            x.stride(0),
            weight.stride(0),
            HAS_BIAS=bias is not None,
            EVEN=channels % tile.channels == 0,
            enable_fp_fusion=False,
            **tile.launch(),
        )
    return result
