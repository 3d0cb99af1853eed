"""Products with NVFP4 weights as Triton kernels: decoded in registers, or through block-scaled tensor cores."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from accel.kernels.forms import on_device
from accel.kernels.int8.tiles import tile_for
from accel.kernels.int8.triton import tile_of_program
from accel.kernels.nvfp4.layout import swizzle_scales
from accel.kernels.nvfp4.reference import GROUP
from accel.kernels.nvfp4.triton import dense, quantize_nvfp4, unscaled
from accel.kernels.nvfp4_linear import NATIVE
from accel.kernels.nvfp4_linear.reference import largest_scale


@triton.jit
def _finish(sums, scale, bias, result, row, output, rows, outputs, HAS_BIAS: tl.constexpr):
    """Scaled, with its bias, rounded and stored."""
    exists, wanted = row < rows, output < outputs
    values = sums * scale
    if HAS_BIAS:
        values += tl.load(bias + output, mask=wanted, other=0.0).to(tl.float32)[None, :]
    at = result + row[:, None].to(tl.int64) * outputs + output[None, :]
    tl.store(at, values.to(result.dtype.element_ty), mask=exists[:, None] & wanted[None, :])


@triton.jit
def _nvfp4_weight_linear(
    x,
    codes,
    scales,
    tensor_scale,
    bias,
    result,
    rows,
    outputs,
    channels,
    x_stride,
    codes_stride,
    scales_stride,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
):
    down, across = tile_of_program(rows, outputs, ROWS, OUTPUTS, TOGETHER)
    row, output = down * ROWS + tl.arange(0, ROWS), across * OUTPUTS + tl.arange(0, OUTPUTS)
    channel = tl.arange(0, CHANNELS)
    # Rows and outputs beyond the last read others again, and are not stored.
    x += (row % rows)[:, None].to(tl.int64) * x_stride + channel[None, :]
    codes += (output % outputs).to(tl.int64) * codes_stride
    scales += (output % outputs).to(tl.int64) * scales_stride
    exists = output >= 0
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for first in tl.range(0, channels, CHANNELS, num_stages=STAGES):
        left = tl.load(x, mask=(channel < channels - first)[None, :], other=0.0).to(DTYPE)
        right = unscaled(codes, scales, exists, first, channels, CHANNELS, GROUP).to(DTYPE)
        sums = tl.dot(left, right.T, sums, input_precision="ieee")
        x += CHANNELS
    _finish(sums, tl.load(tensor_scale), bias, result, row, output, rows, outputs, HAS_BIAS)


def nvfp4_weight_linear(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor | None) -> Tensor:
    rows, channels = x.shape
    outputs = codes.shape[0]
    result = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if result.numel() == 0:
        return result
    x = x if channels == 0 or x.stride(1) == 1 else x.contiguous()
    codes, bytes_ = dense(codes, scales)
    half = x.dtype in (torch.float16, torch.bfloat16)
    with on_device(x):
        tile = tile_for("nvfp4 weight" if half else "nvfp4 weight in float32")
        grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs),)
        _nvfp4_weight_linear[grid](
            x,
            codes,
            bytes_,
            tensor_scale,
            tensor_scale if bias is None else bias.contiguous(),
            result,
            rows,
            outputs,
            channels,
            x.stride(0),
            codes.stride(0),
            bytes_.stride(0),
            HAS_BIAS=bias is not None,
            DTYPE={torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(x.dtype, tl.float32),
            GROUP=GROUP,
            enable_fp_fusion=False,
            **tile.launch(),
        )
    return result


@triton.jit
def _nvfp4_linear(
    x_codes,
    x_scales,
    x_tensor_scale,
    codes,
    scales,
    tensor_scale,
    bias,
    result,
    rows,
    outputs,
    channels,
    x_codes_stride,
    x_scales_stride,
    codes_stride,
    scales_stride,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
):
    down, across = tile_of_program(rows, outputs, ROWS, OUTPUTS, TOGETHER)
    row, output = down * ROWS + tl.arange(0, ROWS), across * OUTPUTS + tl.arange(0, OUTPUTS)
    x_codes += (row % rows).to(tl.int64) * x_codes_stride
    x_scales += (row % rows).to(tl.int64) * x_scales_stride
    codes += (output % outputs).to(tl.int64) * codes_stride
    scales += (output % outputs).to(tl.int64) * scales_stride
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for first in tl.range(0, channels, CHANNELS, num_stages=STAGES):
        left = unscaled(x_codes, x_scales, row >= 0, first, channels, CHANNELS, GROUP).to(tl.float16)
        right = unscaled(codes, scales, output >= 0, first, channels, CHANNELS, GROUP).to(tl.float16)
        sums = tl.dot(left, right.T, sums)
    scale = tl.load(x_tensor_scale) * tl.load(tensor_scale)
    _finish(sums, scale, bias, result, row, output, rows, outputs, HAS_BIAS)


@triton.jit
def _scales_of_tile(tiles, down, across, ROWS: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr):
    """The group scales (ROWS, CHANNELS // GROUP) out of the layout of `accel.kernels.nvfp4.layout`."""
    DOWN: tl.constexpr = ROWS // 128
    ACROSS: tl.constexpr = CHANNELS // (4 * GROUP)
    loaded = tiles.load([0, down * DOWN, across, 0, 0]).reshape(DOWN, ACROSS, 32, 4, 4)
    return loaded.trans(0, 3, 2, 1, 4).reshape(ROWS, CHANNELS // GROUP)


@triton.jit
def _native_nvfp4_linear(
    x_codes,
    x_tiles,
    x_tensor_scale,
    codes,
    tiles,
    tensor_scale,
    bias,
    result,
    rows,
    outputs,
    channels,
    x_codes_stride,
    codes_stride,
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
):
    down, across = tile_of_program(rows, outputs, ROWS, OUTPUTS, TOGETHER)
    row, output = down * ROWS + tl.arange(0, ROWS), across * OUTPUTS + tl.arange(0, OUTPUTS)
    pair = tl.arange(0, CHANNELS // 2)
    # Rows and outputs beyond the last read others again, and are not stored.
    x_codes += (row % rows)[:, None].to(tl.int64) * x_codes_stride + pair[None, :]
    codes += (output % outputs)[:, None].to(tl.int64) * codes_stride + pair[None, :]
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for first in tl.range(0, channels, CHANNELS, num_stages=STAGES):
        if EVEN:
            left, right = tl.load(x_codes), tl.load(codes)
        else:
            inside = (pair < (channels - first) // 2)[None, :]
            left, right = tl.load(x_codes, mask=inside, other=0), tl.load(codes, mask=inside, other=0)
        # Tiles are padded with zeros, and so is what lies beyond the last of them.
        left_scale = _scales_of_tile(x_tiles, down, first // (4 * GROUP), ROWS, CHANNELS, GROUP)
        right_scale = _scales_of_tile(tiles, across, first // (4 * GROUP), OUTPUTS, CHANNELS, GROUP)
        sums = tl.dot_scaled(left, left_scale, "e2m1", right.T, right_scale, "e2m1", sums)
        x_codes += CHANNELS // 2
        codes += CHANNELS // 2
    scale = tl.load(x_tensor_scale) * tl.load(tensor_scale)
    _finish(sums, scale, bias, result, row, output, rows, outputs, HAS_BIAS)


def native(x: Tensor) -> bool:
    """Whether there is something to multiply, and the tensor cores of its device multiply NVFP4 by themselves."""
    if x.numel() == 0 or x.device.type == "cpu":
        return False
    with on_device(x):
        target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and target.arch in NATIVE


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
    if native(x_codes):
        tiles = swizzle_scales(x_scales)
        return _native_product(x_codes, tiles, x_tensor_scale, codes, scales, tensor_scale, bias, dtype)
    rows, channels = x_codes.shape[0], x_codes.shape[1] * 2
    outputs = codes.shape[0]
    result = torch.empty((rows, outputs), dtype=dtype, device=x_codes.device)
    if result.numel() == 0:
        return result
    x_codes, x_bytes = dense(x_codes, x_scales)
    codes, bytes_ = dense(codes, scales)
    with on_device(x_codes):
        tile = tile_for("nvfp4")
        grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs),)
        _nvfp4_linear[grid](
            x_codes,
            x_bytes,
            x_tensor_scale,
            codes,
            bytes_,
            tensor_scale,
            tensor_scale if bias is None else bias.contiguous(),
            result,
            rows,
            outputs,
            channels,
            x_codes.stride(0),
            x_bytes.stride(0),
            codes.stride(0),
            bytes_.stride(0),
            HAS_BIAS=bias is not None,
            GROUP=GROUP,
            enable_fp_fusion=False,
            **tile.launch(),
        )
    return result


def _native_product(
    x_codes: Tensor,
    x_tiles: Tensor,
    x_tensor_scale: Tensor,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The product on tensor cores that take NVFP4, of an x that has numbers and whose scales are in tiles already.

    The weight's scales are put into tiles for each call: stored so, they would be other bytes in memory and in files.
    """
    rows, channels = x_codes.shape[0], x_codes.shape[1] * 2
    outputs = codes.shape[0]
    result = torch.empty((rows, outputs), dtype=dtype, device=x_codes.device)
    if outputs == 0:
        return result
    x_codes, codes = (matrix if matrix.stride(1) == 1 else matrix.contiguous() for matrix in (x_codes, codes))
    with on_device(x_codes):
        tile = tile_for("nvfp4 native")
        grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs),)
        _native_nvfp4_linear[grid](
            x_codes,
            _described(x_tiles, rows, channels, tile.rows, tile.channels),
            x_tensor_scale,
            codes,
            _described(swizzle_scales(scales), outputs, channels, tile.outputs, tile.channels),
            tensor_scale,
            tensor_scale if bias is None else bias.contiguous(),
            result,
            rows,
            outputs,
            channels,
            x_codes.stride(0),
            codes.stride(0),
            HAS_BIAS=bias is not None,
            EVEN=channels % tile.channels == 0,
            GROUP=GROUP,
            enable_fp_fusion=False,
            **tile.launch(),
        )
    return result


def _described(tiles: Tensor, rows: int, channels: int, tile_rows: int, tile_channels: int) -> TensorDescriptor:
    """Scale tiles for the unit that copies them into shared memory, from where the tensor cores read them as they lie:
    each is two rows of 256 bytes, the most that it takes in one."""
    shaped = tiles.view(1, triton.cdiv(rows, 128), triton.cdiv(channels, 4 * GROUP), 2, 256)
    return TensorDescriptor.from_tensor(shaped, [1, tile_rows // 128, tile_channels // (4 * GROUP), 2, 256])


def rounding_nvfp4_linear(
    x: Tensor,
    x_tensor_scale: Tensor,
    rotate: bool,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if native(x):
        x_codes, tiles = quantize_nvfp4(x, x_tensor_scale, False, rotate, swizzled=True)
        result = _native_product(x_codes, tiles, x_tensor_scale, codes, scales, tensor_scale, bias, x.dtype)
        return result, largest_scale(tiles)
    x_codes, x_scales = quantize_nvfp4(x, x_tensor_scale, False, rotate)
    result = nvfp4_linear(x_codes, x_scales, x_tensor_scale, codes, scales, tensor_scale, bias, x.dtype)
    return result, largest_scale(x_scales)
