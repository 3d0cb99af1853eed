"""The delta operations in plain PyTorch: the specification that the other forms are tested against."""

import torch
from torch import Tensor


def compute_delta(output: Tensor, input: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(output.dtype, torch.float32)
    delta = (output.to(wide) - input.to(wide)).to(output.dtype).contiguous()
    stored = None if previous is None else previous.to(wide)
    return delta, statistics(delta.to(wide), input.to(wide), stored, stored).float()


def delta_statistics(output: Tensor, input: Tensor) -> Tensor:
    return compute_delta(output, input, None)[1]


def update_delta(
    output: Tensor, input: Tensor, delta: Tensor, slope: Tensor | None, gap: int
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(torch.promote_types(output.dtype, delta.dtype), torch.float32)
    before, earlier = input.to(wide), delta.to(wide)
    new = (output.to(wide) - before).to(delta.dtype).contiguous()
    predicted = earlier if slope is None else earlier + gap * slope.to(wide)
    per_step = ((new.to(wide) - earlier) / gap).to(delta.dtype).contiguous()
    return new, per_step, statistics(new.to(wide), before, predicted, earlier).float()


def statistics(delta: Tensor, input: Tensor, predicted: Tensor | None, previous: Tensor | None) -> Tensor:
    """The six statistics in the dtype of the arguments: the specification when they are float64."""
    zero = delta.new_zeros(())
    return torch.stack(
        [
            delta.square().sum(),
            input.square().sum(),
            zero if predicted is None else (delta - predicted).square().sum(),
            delta.abs().amax() if delta.numel() else zero,
            delta.isfinite().logical_not().sum().to(delta.dtype),
            zero if previous is None else (delta - previous).square().sum(),
        ]
    )


def apply_delta(input: Tensor, delta: Tensor, slope: Tensor | None, distance: float) -> Tensor:
    wide = torch.promote_types(torch.promote_types(input.dtype, delta.dtype), torch.float32)
    change = delta.to(wide) if slope is None else delta.to(wide) + distance * slope.to(wide)
    return (input.to(wide) + change).to(input.dtype).contiguous()
