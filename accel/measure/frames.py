"""What the metrics take: a clip or a picture, alone or beside a reference, checked once and laid out alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# How far values may lie outside the range, as a share of it: what rounding leaves.
_SLACK = 1e-3


def as_frames(value: Any, name: str = "the clip") -> Tensor:
    """A clip (T, H, W, 3) or a picture (H, W, 3), tensor or array, as (T, H, W, 3) float64 on the CPU.

    Raises:
        ValueError: another shape, or values that are not finite; it calls the clip by its `name`.
    """
    tensor = torch.as_tensor(value).detach().to("cpu", torch.float64)
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4 or tensor.shape[-1] != 3 or 0 in tensor.shape:
        raise ValueError(f"{name} is neither (T, H, W, 3) nor (H, W, 3): it has shape {tuple(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} has values that are not finite")
    return tensor


def as_pair(a: Any, b: Any, data_range: float = 1.0) -> tuple[Tensor, Tensor]:
    """Two clips or pictures of one shape with values in [0, data_range], each as :func:`as_frames` gives it.

    Raises:
        ValueError: as for :func:`as_frames`, shapes that differ, or values outside the range.
    """
    first, second = as_frames(a, "the first clip"), as_frames(b, "the second clip")
    if first.shape != second.shape:
        raise ValueError(f"the clips differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
    slack = _SLACK * data_range
    for clip in (first, second):
        low, high = clip.min().item(), clip.max().item()
        if low < -slack or high > data_range + slack:
            raise ValueError(f"values from {low:g} to {high:g} do not lie in [0, {data_range:g}]")
    return first, second


def as_bytes(frames: Tensor) -> Tensor:
    """Frames in [0, 1] as uint8, rounded to the nearest of 256 levels."""
    return (frames.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def in_parts(first: Tensor, second: Tensor, pixels: int) -> list[tuple[Tensor, Tensor]]:
    """Two clips of one shape cut alike into parts of whole frames, each of at most so many pixels or one frame."""
    length = max(1, pixels // (first.shape[1] * first.shape[2]))
    return list(zip(first.split(length), second.split(length), strict=True))
