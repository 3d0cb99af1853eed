"""The change that a run of blocks makes to its hidden states, and putting it back.

Delta-DiT (Chen et al. 2024, arXiv 2406.01125) caches Delta_{a:b} = F_{a:b}(h_a) - h_a for the blocks a..b-1 on a
full step, and takes h_b = h_a + Delta_{a:b} on the steps in between. Unlike a cached output, that keeps the
current h_a.
"""

import torch
from torch import Tensor

from accel.kernels import checks
from accel.kernels.forms import implementation

__all__ = ["apply_delta", "compute_delta"]


def compute_delta(output: Tensor, input: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`output - input` together with what a caching rule wants to know about it, in one pass.

    Delta-DiT, arXiv 2406.01125: `input` is h_a, `output` is F_{a:b}(h_a). For inference: no gradient is defined.

    Args:
        output: what the blocks made; any shape, float16, bfloat16, float32 or float64, contiguous or strided.
        input: what the blocks were given; shape, dtype and device of `output`.
        previous: the delta of an earlier step, likewise; without it, its statistic is 0.

    Returns:
        The delta, contiguous, in the dtype of the arguments (half types: subtracted in float32, rounded once),
        and a float32 tensor of shape (5,) on the same device. With d for the rounded delta, it holds sum(d²),
        sum(input²), sum((d - previous)²), max|d| and the number of elements of d that are not finite.
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


def apply_delta(input: Tensor, delta: Tensor) -> Tensor:
    """`input + delta` in the dtype of `input`.

    Delta-DiT, arXiv 2406.01125: a cached step, h_b = h_a + Delta_{a:b}. For inference: no gradient is defined.

    Args:
        input: the hidden states h_a; any shape, float16, bfloat16, float32 or float64, contiguous or strided.
        delta: shape and device of `input`; its dtype may be another of the four.

    Returns:
        A new contiguous tensor. Half types are added in float32 and rounded once.

    Raises:
        ValueError: shapes or devices differ, or the forced form cannot run on the device.
        TypeError: a dtype is not among the four.
    """
    checks.require_floats("apply_delta", input=input, delta=delta)
    checks.require_same_place("apply_delta", input=input, delta=delta)
    return _apply_delta(input, delta)


@torch.library.custom_op("accel::compute_delta", mutates_args=())
def _compute_delta(output: Tensor, input: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return implementation(__name__, output).compute_delta(output, input, previous)


@_compute_delta.register_fake
def _(output: Tensor, input: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
    delta = torch.empty_like(output, memory_format=torch.contiguous_format)
    return delta, output.new_empty(5, dtype=torch.float32)


@torch.library.custom_op("accel::apply_delta", mutates_args=())
def _apply_delta(input: Tensor, delta: Tensor) -> Tensor:
    return implementation(__name__, input).apply_delta(input, delta)


@_apply_delta.register_fake
def _(input: Tensor, delta: Tensor) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)
