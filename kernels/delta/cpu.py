"""The delta operations on a CPU: one pass per quantity, and scratch memory that stays in the cache.

On a CPU these operations cost what their memory traffic costs, and fresh memory most of all (each page is
mapped when it is first written). So nothing as large as a tensor is made except the result.
"""

import torch
from torch import Tensor

# Elements of scratch memory: few enough to stay in the cache, enough to be worth a second thread.
_PIECE = 1 << 20
# Elements in one row of a sum. Rows are summed one by one and then together, which keeps float32 accurate.
_ROW = 1024
# The place of the statistic that is a maximum.
_LARGEST = 3


def compute_delta(output: Tensor, input: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
    # torch computes half types in float32 and rounds once, so this is already what the reference does.
    delta = torch.sub(output, input, out=_result_like(output))
    return delta, _statistics(delta, input, previous, previous)


def delta_statistics(output: Tensor, input: Tensor) -> Tensor:
    after, before = output.reshape(-1), input.reshape(-1)
    scratch = after.new_empty(min(_PIECE, after.numel()))
    parts = []
    for start in range(0, max(after.numel(), 1), _PIECE):
        piece = before[start : start + _PIECE]
        delta = torch.sub(after[start : start + _PIECE], piece, out=scratch[: piece.numel()])
        parts.append(_statistics(delta, piece, None, None))
    each = torch.stack(parts)
    total = each.sum(0)
    total[_LARGEST] = each[:, _LARGEST].amax()
    return total


def update_delta(
    output: Tensor, input: Tensor, delta: Tensor, slope: Tensor | None, gap: int
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(output, delta)
    earlier = delta.to(wide)
    new = torch.sub(output.to(wide), input.to(wide)).to(delta.dtype).contiguous()
    per_step = torch.sub(new.to(wide), earlier).div_(gap).to(delta.dtype).contiguous()
    predicted = earlier if slope is None else slope.to(wide).mul(gap).add_(earlier)
    return new, per_step, _statistics(new, input, predicted, earlier)


def apply_delta(input: Tensor, delta: Tensor, slope: Tensor | None, distance: float) -> Tensor:
    if slope is None:
        return torch.add(input, delta, out=_result_like(input))
    wide = _wide(input, delta)
    result = torch.mul(slope.to(wide), distance, out=_result_like(input, dtype=wide))
    return result.add_(delta).add_(input).to(input.dtype)


def _wide(*tensors: Tensor) -> torch.dtype:
    wide = torch.float32
    for tensor in tensors:
        wide = torch.promote_types(wide, tensor.dtype)
    return wide


def _result_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


def _statistics(delta: Tensor, input: Tensor, predicted: Tensor | None, previous: Tensor | None) -> Tensor:
    if delta.numel() == 0:
        return delta.new_zeros(6, dtype=torch.float32)
    flat = delta.view(-1)
    low, high = torch.aminmax(flat)
    largest = torch.maximum(high, -low)
    zero = delta.new_zeros(())
    non_finite = zero if largest.isfinite() else flat.isfinite().logical_not_().sum()
    missed = zero if predicted is None else _sum_of_squares(flat, predicted.reshape(-1))
    moved = missed if previous is predicted or previous is None else _sum_of_squares(flat, previous.reshape(-1))
    stats = [_sum_of_squares(flat), _sum_of_squares(input.reshape(-1)), missed, largest, non_finite, moved]
    return torch.stack([value.float() for value in stats])


def _sum_of_squares(values: Tensor, minus: Tensor | None = None) -> Tensor:
    """The sum of `values` (or of `values - minus`) squared; both flat, contiguous and not empty."""
    wide = torch.promote_types(values.dtype, torch.float32)
    if minus is None and values.dtype == wide:
        return _sum_of_squares_in_place(values)
    scratch = values.new_empty(min(_PIECE, values.numel()), dtype=wide)
    sums = []
    for start in range(0, values.numel(), _PIECE):
        piece = values[start : start + _PIECE]
        widened = scratch[: piece.numel()].copy_(piece)
        if minus is not None:
            widened.sub_(minus[start : start + _PIECE])
        sums.append(_sum_of_squares_in_place(widened))
    return torch.stack(sums).sum()


def _sum_of_squares_in_place(values: Tensor) -> Tensor:
    # The norm of each row is the reduction of torch that squares without a temporary as large as its argument.
    whole = values.numel() // _ROW * _ROW
    norms = torch.linalg.vector_norm(values[:whole].view(-1, _ROW), dim=1)
    rest = torch.linalg.vector_norm(values[whole:])
    return norms.square_().sum() + rest.square_()
