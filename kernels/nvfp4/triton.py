"""NVFP4 as Triton kernels: rotate, choose scales, round and pack in one pass, and the ways back.

Both 8-bit and 4-bit floats are made and read as integers, so that GPUs without instructions for them (all below
sm_89 and sm_100) give the same bits as those that have them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.forms import on_device
from accel.kernels.int8.reference import LARGEST, SMALLEST
from accel.kernels.int8.triton import PIECE, magnitude_bits, nearest_int8, usable_maximum, warps_for
from accel.kernels.nvfp4.layout import tiled_size
from accel.kernels.nvfp4.reference import GROUP, tensor_scale
from accel.kernels.rotation.reference import BLOCK
from accel.kernels.rotation.triton import rotated

__all__ = ["dequantize_nvfp4", "nvfp4_to_int8", "quantize_nvfp4", "tensor_scale"]

# Rows of a tile, of 128 channels each.
ROWS = 16
WARPS = 4

# The byte of an E4M3 that is NaN.
_NAN = tl.constexpr(0x7F)


@triton.jit
def _to_e4m3(values):
    """The nearest E4M3 of numbers from 0 to 448, as its byte in an int32."""
    bits = values.to(tl.int32, bitcast=True)
    # Half of the last kept place is added (a little less before an even one), and the exponent's origin moved.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    # Floats from 2¹⁴ on are as far apart as the E4M3 below 2⁻⁶: 2⁻⁹.
    tiny = (values + 16384.0).to(tl.int32, bitcast=True) & 0xF
    return tl.where(values < 0.015625, tiny, normal)


@triton.jit
def _from_e4m3(byte):
    """The float32 of an E4M3 without a sign: its bits are those of a float16 but for the exponent's origin."""
    value = (byte.to(tl.uint16) << 7).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where(byte == _NAN, float("nan"), value)


@triton.jit
def _to_e2m1(values):
    """The nearest E2M1, a code to an int32."""
    sign = (values.to(tl.int32, bitcast=True) >> 28) & 8
    magnitude = tl.minimum(tl.abs(values), 6.0)
    bits = magnitude.to(tl.int32, bitcast=True)
    normal = ((bits + 0x1FFFFF + ((bits >> 22) & 1)) >> 22) - ((127 - 1) << 1)
    # Floats from 2²² on are half apart.
    tiny = (magnitude + 4194304.0).to(tl.int32, bitcast=True) & 3
    return tl.where(magnitude < 1.0, tiny, normal) | sign


@triton.jit
def _from_e2m1(code):
    """The float32 of a code, by way of the float16 whose bits it is but for the exponent's origin."""
    wide = code.to(tl.uint16)
    return (((wide & 8) << 12) | ((wide & 7) << 9)).to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@triton.jit
def _scales(largest, usable, code: tl.constexpr, tensor_scale):
    """Bytes of the group scales, and their numbers."""
    wanted = tl.minimum(tl.div_rn(largest, code * tensor_scale), 448.0)
    byte = tl.where(usable, _to_e4m3(tl.where(usable, wanted, 0.0)), _NAN)
    return byte, _from_e4m3(byte)


@triton.jit
def _quotients(values, scales, tensor_scale):
    used = scales > 0.0
    factors = tl.div_rn(tl.full(scales.shape, 1.0, tl.float32), tl.where(used, scales, 1.0) * tensor_scale)
    return tl.where(used[:, :, None], values * factors[:, :, None], 0.0)


@triton.jit
def _halved(errors):
    """The sums of neighbours: (rows, groups, n) to (rows, groups, n / 2)."""
    first, second = tl.split(tl.reshape(errors, (errors.shape[0], errors.shape[1], errors.shape[2] // 2, 2)))
    return first + second


@triton.jit
def _squared_error(units, codes, scales):
    differences = (units - _from_e2m1(codes)) * scales[:, :, None]
    pairs = _halved(_halved(_halved(differences * differences)))
    first, second = tl.split(pairs)
    return first + second


@triton.jit
def _quantize_nvfp4(
    x,
    tensor_scale,
    codes,
    scales,
    rows,
    channels,
    row_stride,
    BY_ERROR: tl.constexpr,
    ROTATES: tl.constexpr,
    SWIZZLED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * BLOCK
    channel = first + tl.arange(0, BLOCK)
    exists = (row < rows)[:, None]
    inside = exists & (channel < channels)[None, :]
    values = tl.load(x + row[:, None] * row_stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    if ROTATES:
        values = rotated(values)
    values = tl.reshape(values, (ROWS, BLOCK // GROUP, GROUP))
    whole = tl.broadcast_to(tl.load(tensor_scale), (ROWS, BLOCK // GROUP))
    largest = tl.max(magnitude_bits(values), 2).to(tl.float32, bitcast=True)
    usable = (largest < float("inf")) & (whole > 0.0) & (whole < float("inf"))
    chosen, numbers = _scales(largest, usable, 6.0, whole)
    units = _quotients(values, numbers, whole)
    each = _to_e2m1(units)
    if BY_ERROR:
        others, other_numbers = _scales(largest, usable, 4.0, whole)
        other_units = _quotients(values, other_numbers, whole)
        other_each = _to_e2m1(other_units)
        less = _squared_error(other_units, other_each, other_numbers) < _squared_error(units, each, numbers)
        chosen = tl.where(less, others, chosen)
        each = tl.where(less[:, :, None], other_each, each)
    low, high = tl.split(tl.reshape(each, (ROWS, BLOCK // 2, 2)))
    pair = first // 2 + tl.arange(0, BLOCK // 2)
    at = codes + row[:, None] * (channels // 2) + pair[None, :]
    tl.store(at, (low | (high << 4)).to(tl.uint8), mask=exists & (pair < channels // 2)[None, :])
    group = first // GROUP + tl.arange(0, BLOCK // GROUP)
    groups = channels // GROUP
    if SWIZZLED:
        tile = (row // 128 * tl.cdiv(groups, 4))[:, None] + (group // 4)[None, :]
        at = scales + tile * 512 + (row % 32 * 16 + row % 128 // 32 * 4)[:, None] + (group % 4)[None, :]
    else:
        at = scales + row[:, None] * groups + group[None, :]
    tl.store(at, chosen.to(tl.uint8), mask=exists & (group < groups)[None, :])


def quantize_nvfp4(
    x: Tensor, tensor_scale: Tensor, by_error: bool, rotate: bool, swizzled: bool = False
) -> tuple[Tensor, Tensor]:
    """With `swizzled`, the scales are in the order and the shape of `swizzle_scales`."""
    rows, channels = x.shape
    groups = channels // GROUP
    codes = torch.empty((rows, channels // 2), dtype=torch.uint8, device=x.device)
    if swizzled:
        # The padding of the last tiles is written by nobody.
        scales = torch.zeros(tiled_size(rows, groups), dtype=torch.uint8, device=x.device)
    else:
        scales = torch.empty((rows, groups), dtype=torch.uint8, device=x.device)
    if codes.numel() > 0:
        x = x if x.stride(1) == 1 else x.contiguous()
        with on_device(x):
            _quantize_nvfp4[(triton.cdiv(rows, ROWS), triton.cdiv(channels, BLOCK))](
                x,
                tensor_scale,
                codes,
                scales,
                rows,
                channels,
                x.stride(0),
                BY_ERROR=by_error,
                ROTATES=rotate,
                SWIZZLED=swizzled,
                ROWS=ROWS,
                BLOCK=BLOCK,
                GROUP=GROUP,
                num_warps=WARPS,
                enable_fp_fusion=False,
            )
    return codes, scales.view(torch.float8_e4m3fn)


@triton.jit
def unscaled(codes, scales, exists, first, channels, CHANNELS: tl.constexpr, GROUP: tl.constexpr):
    """code * group scale of as many channels from the first on, of rows that start at these addresses, in float32."""
    ROWS: tl.constexpr = codes.shape[0]
    pair = first // 2 + tl.arange(0, CHANNELS // 2)
    inside = exists[:, None] & (pair < channels // 2)[None, :]
    byte = tl.load(codes[:, None] + pair[None, :], mask=inside, other=0).to(tl.int32)
    group = first // GROUP + tl.arange(0, CHANNELS // GROUP)
    inside = exists[:, None] & (group < channels // GROUP)[None, :]
    scale = _from_e4m3(tl.load(scales[:, None] + group[None, :], mask=inside, other=0).to(tl.int32))
    each = tl.join(_from_e2m1(byte & 15), _from_e2m1(byte >> 4))
    values = tl.reshape(each, (ROWS, CHANNELS // GROUP, GROUP)) * scale[:, :, None]
    return tl.reshape(values, (ROWS, CHANNELS))


@triton.jit
def _dequantize_nvfp4(
    codes,
    scales,
    tensor_scale,
    result,
    rows,
    channels,
    codes_stride,
    scales_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * BLOCK
    exists = row < rows
    codes += row * codes_stride
    scales += row * scales_stride
    values = unscaled(codes, scales, exists, first, channels, BLOCK, GROUP) * tl.load(tensor_scale)
    channel = first + tl.arange(0, BLOCK)
    at = result + row[:, None] * channels + channel[None, :]
    tl.store(at, values.to(result.dtype.element_ty), mask=exists[:, None] & (channel < channels)[None, :])


def dequantize_nvfp4(codes: Tensor, scales: Tensor, tensor_scale: Tensor, dtype: torch.dtype) -> Tensor:
    rows, channels = codes.shape[0], codes.shape[1] * 2
    result = torch.empty((rows, channels), dtype=dtype, device=codes.device)
    if result.numel() == 0:
        return result
    codes, bytes_ = dense(codes, scales)
    with on_device(codes):
        _dequantize_nvfp4[(triton.cdiv(rows, ROWS), triton.cdiv(channels, BLOCK))](
            codes,
            bytes_,
            tensor_scale,
            result,
            rows,
            channels,
            codes.stride(0),
            bytes_.stride(0),
            ROWS=ROWS,
            BLOCK=BLOCK,
            GROUP=GROUP,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return result


def dense(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Both with rows that have no gaps, the scales as bytes."""
    codes, scales = (matrix if matrix.stride(1) == 1 else matrix.contiguous() for matrix in (codes, scales))
    return codes, scales.view(torch.uint8)


@triton.jit
def _nvfp4_to_int8(
    codes,
    scales,
    tensor_scale,
    result,
    row_scales,
    channels,
    codes_stride,
    scales_stride,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
    PIECE: tl.constexpr,
    GROUP: tl.constexpr,
    FITS: tl.constexpr,
):
    # One row, as a matrix of one.
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    exists = row >= 0
    codes += row * codes_stride
    scales += row * scales_stride
    if FITS:
        values = unscaled(codes, scales, exists, 0, channels, PIECE, GROUP)
        bits = tl.max(magnitude_bits(values), 1)
    else:
        bits_of = tl.zeros((1, PIECE), tl.int32)
        for first in range(0, channels, PIECE):
            piece = unscaled(codes, scales, exists, first, channels, PIECE, GROUP)
            bits_of = tl.maximum(bits_of, magnitude_bits(piece))
        bits = tl.max(bits_of, 1)
    largest, usable = usable_maximum(bits, SMALLEST)
    factor = tl.div_rn(tl.full((1,), LARGEST, tl.float32), largest)
    scale = tl.div_rn(largest, tl.full((1,), LARGEST, tl.float32))
    tl.store(row_scales + row, tl.where(usable, scale, float("nan")) * tl.load(tensor_scale))
    at = tl.arange(0, PIECE)[None, :]
    result += row[:, None] * channels
    if FITS:
        tl.store(result + at, nearest_int8(values, factor[:, None], usable[:, None]), mask=at < channels)
    else:
        for first in range(0, channels, PIECE):
            piece = unscaled(codes, scales, exists, first, channels, PIECE, GROUP)
            rounded = nearest_int8(piece, factor[:, None], usable[:, None])
            tl.store(result + first + at, rounded, mask=first + at < channels)


def nvfp4_to_int8(codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> tuple[Tensor, Tensor]:
    rows, channels = codes.shape[0], codes.shape[1] * 2
    result = torch.empty((rows, channels), dtype=torch.int8, device=codes.device)
    row_scales = torch.empty(rows, dtype=torch.float32, device=codes.device)
    if rows == 0:
        return result, row_scales
    codes, bytes_ = dense(codes, scales)
    piece = min(max(triton.next_power_of_2(channels), BLOCK), PIECE)
    with on_device(codes):
        _nvfp4_to_int8[(rows,)](
            codes,
            bytes_,
            tensor_scale,
            result,
            row_scales,
            channels,
            codes.stride(0),
            bytes_.stride(0),
            LARGEST=LARGEST,
            SMALLEST=SMALLEST,
            PIECE=piece,
            GROUP=GROUP,
            FITS=channels <= piece,
            num_warps=warps_for(piece),
            enable_fp_fusion=False,
        )
    return result, row_scales
