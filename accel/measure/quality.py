"""How much a clip or a picture is like another: PSNR and SSIM; and how much a clip moves."""

import math
from typing import Any

import torch
from pytorch_msssim import ssim as _windowed_ssim
from torch import Tensor

_WINDOW = 11
_SIGMA = 1.5


def _frames(value: Any, name: str) -> Tensor:
    """A clip or a picture as (T, H, W, 3) float64 on the CPU."""
    tensor = torch.as_tensor(value).detach().to("cpu", torch.float64)
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4 or tensor.shape[-1] != 3 or 0 in tensor.shape:
        raise ValueError(f"{name} is neither (T, H, W, 3) nor (H, W, 3): it has shape {tuple(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} has values that are not finite")
    return tensor


def _pair(a: Any, b: Any, data_range: float) -> tuple[Tensor, Tensor]:
    first, second = _frames(a, "the first clip"), _frames(b, "the second clip")
    if first.shape != second.shape:
        raise ValueError(f"the clips differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
    slack = 1e-3 * data_range
    for clip in (first, second):
        low, high = clip.min().item(), clip.max().item()
        if low < -slack or high > data_range + slack:
            raise ValueError(f"values from {low:g} to {high:g} do not lie in [0, {data_range:g}]")
    return first, second


def psnr(a: Any, b: Any, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / MSE), with the MSE over all frames together.

    Args:
        a, b: clips (T, H, W, 3) or pictures (H, W, 3), tensors or arrays, in [0, data_range].

    Returns:
        The ratio, computed in float64; infinity for equal clips.

    Raises:
        ValueError: shapes that differ, other shapes, values out of range or not finite.
    """
    first, second = _pair(a, b, data_range)
    error = (first - second).square().mean().item()
    return 10 * math.log10(data_range**2 / error) if error > 0 else math.inf


def ssim(a: Any, b: Any) -> float:
    """Structural similarity (Wang et al., "Image quality assessment: from error visibility to structural
    similarity", IEEE TIP 2004, equation 13), mean over positions, channels and frames: 1 for equal clips.

    A Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, positions where the window fits.

    Args:
        a, b: clips (T, H, W, 3) or pictures (H, W, 3), tensors or arrays, in [0, 1], from 11 pixels a side.

    Raises:
        ValueError: as for :func:`psnr`, or frames smaller than the window.
    """
    first, second = _pair(a, b, 1.0)
    if min(first.shape[1:3]) < _WINDOW:
        height, width = first.shape[1:3]
        raise ValueError(f"SSIM needs {_WINDOW} pixels a side, the frames have {height}x{width}")
    planes = [clip.permute(0, 3, 1, 2).contiguous() for clip in (first, second)]
    # The package's own window is float32: it misses a sum of 1 by 3e-8, which costs flat frames 1e-5 of SSIM.
    place = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-place.square() / (2 * _SIGMA**2))
    window = (window / window.sum()).expand(3, 1, 1, _WINDOW)
    return _windowed_ssim(*planes, data_range=1.0, win=window).item()


def motion(clip: Any) -> float:
    """The mean absolute difference between neighbouring frames of a clip (T, H, W, 3), 0 for one that stands still.

    Raises:
        ValueError: fewer than two frames, another shape, or values that are not finite.
    """
    frames = _frames(clip, "the clip")
    if len(frames) < 2:
        raise ValueError(f"motion needs two frames, the clip has {len(frames)}")
    return frames.diff(dim=0).abs().mean().item()
