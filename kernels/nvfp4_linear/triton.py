"""Products with NVFP4 weights as Triton kernels: decoded in registers, or through block-scaled tensor cores."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.forms import on_device
from accel.kernels.int8.triton import TOGETHER, tile_of_program
from accel.kernels.nvfp4.reference import GROUP
from accel.kernels.nvfp4.triton import dense, quantize_nvfp4, unscaled
from accel.kernels.nvfp4_linear import NATIVE
from accel.kernels.nvfp4_linear.reference import largest_scale

# Rows, outputs and channels of a tile: where the tensor cores decode, and where the kernel does.
NATIVE_TILE = (128, 128, 256)
TILE = (128, 128, 64)
# Float32 takes twice the room.
WIDE_TILE = (64, 64, 32)
WARPS = 8
STAGES = 3


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
    tile_rows, tile_outputs, tile_channels = TILE if half else WIDE_TILE
    grid = (triton.cdiv(rows, tile_rows) * triton.cdiv(outputs, tile_outputs),)
    with on_device(x):
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
            ROWS=tile_rows,
            OUTPUTS=tile_outputs,
            CHANNELS=tile_channels,
            GROUP=GROUP,
            TOGETHER=TOGETHER,
            STAGES=STAGES,
            num_warps=WARPS,
            enable_fp_fusion=False,
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
    NATIVE: tl.constexpr,
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
    pair, group = tl.arange(0, CHANNELS // 2), tl.arange(0, CHANNELS // GROUP)
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for first in tl.range(0, channels, CHANNELS, num_stages=STAGES):
        if NATIVE:
            packed = (pair < (channels - first) // 2)[None, :]
            scaled = (group < (channels - first) // GROUP)[None, :]
            at, scale_at = first // 2 + pair[None, :], first // GROUP + group[None, :]
            left = tl.load(x_codes[:, None] + at, mask=packed, other=0)
            right = tl.load(codes[:, None] + at, mask=packed, other=0)
            left_scale = tl.load(x_scales[:, None] + scale_at, mask=scaled, other=0.0)
            right_scale = tl.load(scales[:, None] + scale_at, mask=scaled, other=0.0)
            sums = tl.dot_scaled(left, left_scale, "e2m1", right.T, right_scale, "e2m1", sums)
        else:
            left = unscaled(x_codes, x_scales, row >= 0, first, channels, CHANNELS, GROUP).to(tl.float16)
            right = unscaled(codes, scales, output >= 0, first, channels, CHANNELS, GROUP).to(tl.float16)
            sums = tl.dot(left, right.T, sums)
    scale = tl.load(x_tensor_scale) * tl.load(tensor_scale)
    _finish(sums, scale, bias, result, row, output, rows, outputs, HAS_BIAS)


def native(x: Tensor) -> bool:
    """Whether the tensor cores of this device multiply NVFP4 by themselves."""
    target = triton.runtime.driver.active.get_current_target() if x.device.type != "cpu" else None
    return target is not None and target.backend == "cuda" and target.arch in NATIVE


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
    rows, channels = x_codes.shape[0], x_codes.shape[1] * 2
    outputs = codes.shape[0]
    result = torch.empty((rows, outputs), dtype=dtype, device=x_codes.device)
    if result.numel() == 0:
        return result
    x_codes, x_bytes = dense(x_codes, x_scales)
    codes, bytes_ = dense(codes, scales)
    with on_device(x_codes):
        decodes = native(x_codes)
        if decodes:
            x_bytes, bytes_ = x_bytes.view(torch.float8_e4m3fn), bytes_.view(torch.float8_e4m3fn)
        tile_rows, tile_outputs, tile_channels = NATIVE_TILE if decodes else TILE
        grid = (triton.cdiv(rows, tile_rows) * triton.cdiv(outputs, tile_outputs),)
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
            NATIVE=decodes,
            ROWS=tile_rows,
            OUTPUTS=tile_outputs,
            CHANNELS=tile_channels,
            GROUP=GROUP,
            TOGETHER=TOGETHER,
            STAGES=STAGES,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return result


def rounding_nvfp4_linear(
    x: Tensor,
    x_tensor_scale: Tensor,
    rotate: bool,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    x_codes, x_scales = quantize_nvfp4(x, x_tensor_scale, False, rotate)
    result = nvfp4_linear(x_codes, x_scales, x_tensor_scale, codes, scales, tensor_scale, bias, x.dtype)
    return result, largest_scale(x_scales)
