"""The change that a run of blocks makes to its hidden states, and putting it back.

Delta-DiT (Chen et al. 2024, arXiv 2406.01125) caches Delta_{a:b} = F_{a:b}(h_a) - h_a for the blocks a..b-1 on a
full step, and takes h_b = h_a + Delta_{a:b} on the steps in between. Unlike a cached output, that keeps the
current h_a. A slope, the change of the delta per step, continues it along a line (TaylorSeer, arXiv 2503.06923, at
order 1).
"""

import ctypes

import torch
from torch import Tensor

from accel.kernels import checks
from accel.kernels.forms import implementation

__all__ = ["apply_delta", "compute_delta", "delta_statistics", "update_delta"]


def compute_delta(output: Tensor, input: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`output - input` together with what a caching rule wants to know about it, in one pass.

    Delta-DiT, arXiv 2406.01125: `input` is h_a, `output` is F_{a:b}(h_a). For inference: no gradient is defined.

    Args:
        output: what the blocks made; any shape, float16, bfloat16, float32 or float64, contiguous or strided.
        input: what the blocks were given; shape, dtype and device of `output`.
        previous: the delta of an earlier step, likewise; without it, its statistics are 0.

    Returns:
        The delta, contiguous, in the dtype of the arguments (half types: subtracted in float32, rounded once),
        and a float32 tensor of shape (6,) on the same device. With d for the rounded delta, it holds sum(d²),
        sum(input²), sum((d - previous)²), max|d|, the number of elements of d that are not finite, and once more
        sum((d - previous)²).
        Sums are accumulated in float32, in an order that the shape decides: the same call gives the same bits.
        A NaN in d makes max|d| NaN; where d has elements that are not finite the sums may be so too, but their
        number is exact (up to 2²⁴, where float32 stops counting by ones). Empty tensors give zeros.

    Raises:
        ValueError: shapes or devices differ, or the forced form cannot run on the device.
        TypeError: dtypes differ or are not among the four.
    """
    named = {"output": output, "input": input} | ({} if previous is None else {"previous": previous})
    checks.require_floats("compute_delta", **named)
    checks.require_same_place("compute_delta", **named)
    checks.require_same_dtype("compute_delta", **named)
    return _compute_delta(output, input, previous)


def delta_statistics(output: Tensor, input: Tensor) -> Tensor:
    """The statistics of `compute_delta` alone, for who does not keep the delta: nothing as large as it is made.

    For inference: no gradient is defined.

    Args:
        output, input: as of `compute_delta`; on a CPU one that is not contiguous is copied.

    Returns:
        float32 (6,), on their device: what `compute_delta` gives without an earlier delta.

    Raises:
        ValueError: shapes or devices differ, or the forced form cannot run on the device.
        TypeError: dtypes differ or are not among the four.
    """
    named = {"output": output, "input": input}
    checks.require_floats("delta_statistics", **named)
    checks.require_same_place("delta_statistics", **named)
    checks.require_same_dtype("delta_statistics", **named)
    return _delta_statistics(output, input)


def update_delta(
    output: Tensor, input: Tensor, delta: Tensor, slope: Tensor | None, gap: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`output - input` as the successor of an earlier delta, with its slope and how wrong the prediction was.

    With d = output - input, the new slope is (d - delta) / gap, and the earlier delta would have predicted
    delta + gap * slope for this step (delta alone without a slope): TaylorSeer, arXiv 2503.06923, at order 1.
    For inference: no gradient is defined.

    Args:
        output, input: as of `compute_delta`.
        delta, slope: the delta of the last capture and its change per step; shape and device of `output`, both of
            one dtype of the four, in which the results are held.
        gap: steps from the last capture to this one, at least 1.

    Returns:
        The delta and the slope in the dtype of `delta`, contiguous (computed in the wider of the two dtypes, at
        least float32, each rounded once), and the statistics of `compute_delta`, of d as it is held, with
        sum((d - prediction)²) in the third place and sum((d - delta)²) in the last.

    Raises:
        ValueError: shapes or devices differ, `gap` is below 1, or the forced form cannot run on the device.
        TypeError: dtypes are not among the four, or those that should be one differ.
    """
    held = {"delta": delta} | ({} if slope is None else {"slope": slope})
    checks.require_floats("update_delta", output=output, input=input, **held)
    checks.require_same_place("update_delta", output=output, input=input, **held)
    checks.require_same_dtype("update_delta", output=output, input=input)
    checks.require_same_dtype("update_delta", **held)
    if gap < 1:
        raise ValueError(f"update_delta takes a gap of at least 1 step, not {gap}")
    return _update_delta(output, input, delta, slope, gap)


def apply_delta(input: Tensor, delta: Tensor, slope: Tensor | None = None, distance: float = 0.0) -> Tensor:
    """`input + (delta + distance * slope)` in the dtype of `input`.

    Delta-DiT, arXiv 2406.01125: a cached step, h_b = h_a + Delta_{a:b}; with a slope, Delta_{a:b} is continued along
    a line (TaylorSeer, arXiv 2503.06923, at order 1). For inference: no gradient is defined.

    Args:
        input: the hidden states h_a; any shape, float16, bfloat16, float32 or float64, contiguous or strided.
        delta: shape and device of `input`; its dtype may be another of the four.
        slope: the change of the delta per step; shape, device and dtype of `delta`. Without it, the delta as it is.
        distance: how many steps to follow the slope; used as the nearest float32.

    Returns:
        A new contiguous tensor. Half types are added in float32 and rounded once.

    Raises:
        ValueError: shapes or devices differ, or the forced form cannot run on the device.
        TypeError: a dtype is not among the four, or delta and slope differ in it.
    """
    held = {"delta": delta} | ({} if slope is None else {"slope": slope})
    checks.require_floats("apply_delta", input=input, **held)
    checks.require_same_place("apply_delta", input=input, **held)
    checks.require_same_dtype("apply_delta", **held)
    return _apply_delta(input, delta, slope, distance)


@torch.library.custom_op("accel::compute_delta", mutates_args=())
def _compute_delta(output: Tensor, input: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return implementation(__name__, output).compute_delta(output, input, previous)


@_compute_delta.register_fake
def _(output: Tensor, input: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
    delta = torch.empty_like(output, memory_format=torch.contiguous_format)
    return delta, output.new_empty(6, dtype=torch.float32)


@torch.library.custom_op("accel::delta_statistics", mutates_args=())
def _delta_statistics(output: Tensor, input: Tensor) -> Tensor:
    return implementation(__name__, output).delta_statistics(output, input)


@_delta_statistics.register_fake
def _(output: Tensor, input: Tensor) -> Tensor:
    return output.new_empty(6, dtype=torch.float32)


@torch.library.custom_op("accel::update_delta", mutates_args=())
def _update_delta(
    output: Tensor, input: Tensor, delta: Tensor, slope: Tensor | None, gap: int
) -> tuple[Tensor, Tensor, Tensor]:
    return implementation(__name__, output).update_delta(output, input, delta, slope, gap)


@_update_delta.register_fake
def _(output: Tensor, input: Tensor, delta: Tensor, slope: Tensor | None, gap: int) -> tuple[Tensor, Tensor, Tensor]:
    held = torch.empty_like(delta, memory_format=torch.contiguous_format)
    return held, torch.empty_like(held), output.new_empty(6, dtype=torch.float32)


@torch.library.custom_op("accel::apply_delta", mutates_args=())
def _apply_delta(input: Tensor, delta: Tensor, slope: Tensor | None = None, distance: float = 0.0) -> Tensor:
    # As a kernel is given it.
    return implementation(__name__, input).apply_delta(input, delta, slope, ctypes.c_float(distance).value)


@_apply_delta.register_fake
def _(input: Tensor, delta: Tensor, slope: Tensor | None = None, distance: float = 0.0) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)
