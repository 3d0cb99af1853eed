"""The delta operations as Triton kernels: each tensor is read once, in 128-bit pieces.

The sums are made in two stages without atomics: a fixed number of programs each sum their own blocks, and one
program adds the partial sums. The order depends on the shape alone, so the same call gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.forms import on_device

# 8 elements for each of the 128 threads: one 128-bit access in half types, two in float32.
BLOCK = 1024
WARPS = 4
# Enough programs to fill the largest GPUs more than once; a constant, so that no sum depends on the GPU.
MAX_PROGRAMS = 2048

_WIDE = {
    torch.float16: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@triton.jit
def _compute_delta(
    output,
    input,
    previous,
    slope,
    delta,
    new_slope,
    partials,
    columns,
    output_stride,
    input_stride,
    previous_stride,
    slope_stride,
    gap,
    blocks_per_row,
    blocks,
    KEEPS: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr,
    HAS_SLOPE: tl.constexpr,
    MAKES_SLOPE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lanes = tl.arange(0, BLOCK)
    delta_squared = tl.zeros((BLOCK,), tl.float32)
    input_squared = tl.zeros((BLOCK,), tl.float32)
    missed_squared = tl.zeros((BLOCK,), tl.float32)
    moved_squared = tl.zeros((BLOCK,), tl.float32)
    largest = tl.zeros((BLOCK,), tl.int32)
    non_finite = tl.zeros((BLOCK,), tl.int32)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row = (block // blocks_per_row).to(tl.int64)
        column = (block % blocks_per_row).to(tl.int64) * BLOCK
        inside = lanes < columns - column
        before = tl.load(input + row * input_stride + column + lanes, mask=inside, other=0.0).to(WIDE)
        after = tl.load(output + row * output_stride + column + lanes, mask=inside, other=0.0).to(WIDE)
        rounded = (after - before).to(delta.dtype.element_ty)
        if KEEPS:
            tl.store(delta + row * columns + column + lanes, rounded, mask=inside)

        exact = rounded.to(WIDE)
        value = exact.to(tl.float32)
        base = before.to(tl.float32)
        delta_squared += value * value
        input_squared += base * base
        if HAS_PREVIOUS:
            predicted = tl.load(previous + row * previous_stride + column + lanes, mask=inside, other=0.0).to(WIDE)
            moved = (exact - predicted).to(tl.float32)
            moved_squared += moved * moved
            if MAKES_SLOPE:
                # A division that is rounded once, as elsewhere; the plain one is approximate in float32.
                steps = tl.full((BLOCK,), gap, WIDE)
                if exact.dtype == tl.float64:
                    per_step = (exact - predicted) / steps
                else:
                    per_step = tl.div_rn(exact - predicted, steps)
                tl.store(new_slope + row * columns + column + lanes, per_step.to(delta.dtype.element_ty), mask=inside)
                if HAS_SLOPE:
                    before_slope = tl.load(slope + row * slope_stride + column + lanes, mask=inside, other=0.0)
                    predicted += steps * before_slope.to(WIDE)
            missed = (exact - predicted).to(tl.float32)
            missed_squared += missed * missed
        # Without their sign, floats are in the order of their bits read as integers, with NaN above infinity:
        # a maximum of integers cannot lose a NaN.
        largest = tl.maximum(largest, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        non_finite += tl.where(tl.abs(exact) < float("inf"), 0, 1)

    programs = tl.num_programs(0)
    partial = partials + tl.program_id(0)
    tl.store(partial, tl.sum(delta_squared))
    tl.store(partial + programs, tl.sum(input_squared))
    tl.store(partial + 2 * programs, tl.sum(missed_squared))
    tl.store(partial + 3 * programs, tl.max(largest).to(tl.float32, bitcast=True))
    tl.store(partial + 4 * programs, tl.sum(non_finite).to(tl.float32))
    tl.store(partial + 5 * programs, tl.sum(moved_squared))


@triton.jit
def _finish_stats(partials, stats, programs, PROGRAMS: tl.constexpr):
    lanes = tl.arange(0, PROGRAMS)
    inside = lanes < programs
    for statistic in tl.static_range(6):
        values = tl.load(partials + statistic * programs + lanes, mask=inside, other=0.0)
        if statistic == 3:
            result = tl.max(values.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
        else:
            result = tl.sum(values)
        tl.store(stats + statistic, result)


@triton.jit
def _apply_delta(
    input,
    delta,
    slope,
    output,
    columns,
    input_stride,
    delta_stride,
    slope_stride,
    distance,
    blocks_per_row,
    HAS_SLOPE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    row = (block // blocks_per_row).to(tl.int64)
    column = (block % blocks_per_row).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    inside = lanes < columns - column
    base = tl.load(input + row * input_stride + column + lanes, mask=inside, other=0.0).to(WIDE)
    change = tl.load(delta + row * delta_stride + column + lanes, mask=inside, other=0.0).to(WIDE)
    if HAS_SLOPE:
        per_step = tl.load(slope + row * slope_stride + column + lanes, mask=inside, other=0.0).to(WIDE)
        change += tl.full((BLOCK,), distance, WIDE) * per_step
    result = (base + change).to(output.dtype.element_ty)
    tl.store(output + row * columns + column + lanes, result, mask=inside)


def compute_delta(output: Tensor, input: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
    delta = _like(output, output.dtype)
    return delta, _compute(output, input, previous, None, None, delta, None)


def delta_statistics(output: Tensor, input: Tensor) -> Tensor:
    return _compute(output, input, None, None, None, None, None)


def update_delta(
    output: Tensor, input: Tensor, delta: Tensor, slope: Tensor | None, gap: int
) -> tuple[Tensor, Tensor, Tensor]:
    new, new_slope = _like(output, delta.dtype), _like(output, delta.dtype)
    return new, new_slope, _compute(output, input, delta, slope, gap, new, new_slope)


def _like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


def _compute(
    output: Tensor,
    input: Tensor,
    previous: Tensor | None,
    slope: Tensor | None,
    gap: int | None,
    delta: Tensor | None,
    new_slope: Tensor | None,
) -> Tensor:
    """Fills the delta and the slope, where they are to be kept, and gives the statistics."""
    if output.numel() == 0:
        return torch.zeros(6, dtype=torch.float32, device=output.device)
    # Kernels take a tensor at every place; one that is not there is never read or written.
    after, before, stored, sloped = _as_rows(
        output, input, input if previous is None else previous, input if slope is None else slope
    )
    made = after if delta is None else delta
    rows, columns = after.shape
    blocks_per_row = triton.cdiv(columns, BLOCK)
    blocks = rows * blocks_per_row
    programs = min(blocks, MAX_PROGRAMS)
    partials = torch.empty(6, programs, dtype=torch.float32, device=output.device)
    stats = torch.empty(6, dtype=torch.float32, device=output.device)
    with on_device(output):
        _compute_delta[(programs,)](
            after,
            before,
            stored,
            sloped,
            made,
            made if new_slope is None else new_slope,
            partials,
            columns,
            after.stride(0),
            before.stride(0),
            stored.stride(0),
            sloped.stride(0),
            float(gap or 1),
            blocks_per_row,
            blocks,
            KEEPS=delta is not None,
            HAS_PREVIOUS=previous is not None,
            HAS_SLOPE=slope is not None,
            MAKES_SLOPE=gap is not None,
            WIDE=_WIDE[torch.promote_types(output.dtype, made.dtype)],
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
        _finish_stats[(1,)](
            partials,
            stats,
            programs,
            PROGRAMS=triton.next_power_of_2(MAX_PROGRAMS),
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return stats


def apply_delta(input: Tensor, delta: Tensor, slope: Tensor | None, distance: float) -> Tensor:
    output = torch.empty_like(input, memory_format=torch.contiguous_format)
    if output.numel() == 0:
        return output
    base, change, sloped = _as_rows(input, delta, delta if slope is None else slope)
    rows, columns = base.shape
    blocks_per_row = triton.cdiv(columns, BLOCK)
    with on_device(input):
        _apply_delta[(rows * blocks_per_row,)](
            base,
            change,
            sloped,
            output,
            columns,
            base.stride(0),
            change.stride(0),
            sloped.stride(0),
            distance,
            blocks_per_row,
            HAS_SLOPE=slope is not None,
            WIDE=_WIDE[torch.promote_types(input.dtype, delta.dtype)],
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return output


def _as_rows(*tensors: Tensor) -> list[Tensor]:
    """The tensors as (rows, columns) with contiguous rows; copied only where no long row exists.

    A slice of a sequence (text or picture tokens out of both) becomes one long row per batch element.
    """
    size = tensors[0].numel()
    columns = 1
    for axis in reversed(range(tensors[0].ndim)):
        length = tensors[0].shape[axis]
        if length > 1 and any(tensor.stride(axis) != columns for tensor in tensors):
            break
        columns *= length
    if columns < BLOCK:
        columns = size
    return [_rows_of(tensor, size // columns, columns) for tensor in tensors]


def _rows_of(tensor: Tensor, rows: int, columns: int) -> Tensor:
    try:
        view = tensor.view(rows, columns)
    except RuntimeError:
        return tensor.contiguous().view(rows, columns)
    # A view with gaps inside its rows exists too: every second element, or one element repeated.
    return view if columns == 1 or view.stride(1) == 1 else view.contiguous()
