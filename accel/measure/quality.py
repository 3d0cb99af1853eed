"""How much a clip or a picture is like another, pixel for pixel: PSNR, SSIM and MS-SSIM."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pytorch_msssim import ms_ssim as _scaled_ssim
from pytorch_msssim import ssim as _windowed_ssim
from torch import Tensor

from accel.errors import AccelError
from accel.measure.frames import as_pair, in_parts

_WINDOW = 11
_SIGMA = 1.5
# Frames no wider than 160 pixels, as those of the built-in model, are too small for five scales of the window of 11.
_SMALL_WINDOW = 7
_SCALES = 5
# So many at a time: larger sums cost three times the time (measured: they leave the cache), and fill the memory.
_PIXELS_AT_ONCE = 2**16


def psnr(a: Any, b: Any, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / MSE), with the MSE over all frames together.

    Args:
        a, b: clips (T, H, W, 3) or pictures (H, W, 3), tensors or arrays, in [0, data_range].

    Returns:
        The ratio, computed in float64; infinity for equal clips.

    Raises:
        ValueError: shapes that differ, other shapes, values out of range or not finite.
    """
    first, second = as_pair(a, b, data_range)
    error = (first - second).square().mean().item()
    return 10 * math.log10(data_range**2 / error) if error > 0 else math.inf


def ssim(a: Any, b: Any) -> float:
    """Structural similarity (Wang et al., "Image quality assessment: from error visibility to structural
    similarity", IEEE TIP 2004, equation 13), mean over positions, channels and frames: 1 for equal clips.

    A Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, positions where the window fits.

    Args:
        a, b: clips (T, H, W, 3) or pictures (H, W, 3), tensors or arrays, in [0, 1], from 11 pixels a side.

    Raises:
        ValueError: as for :func:`psnr`.
        AccelError: frames smaller than the window.
    """
    first, second = as_pair(a, b)
    if min(first.shape[1:3]) < _WINDOW:
        raise AccelError(f"SSIM needs {_WINDOW} pixels a side, the frames have {_size(first)}")
    return _mean_over_frames(_windowed_ssim, first, second, _WINDOW)


def ms_ssim(a: Any, b: Any) -> float:
    """SSIM over five scales (Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality
    assessment", Asilomar 2003, equation 7 with its weights), mean over channels and frames: 1 for equal clips.

    The five scales and the published weights are kept for all sizes. The window is the published one, 11 pixels
    with sigma 1.5, where it fits the coarsest scale, which takes more than 160 pixels a side. For smaller frames,
    down to 97 pixels a side, the same Gaussian is cut to 7 pixels (our choice): such a figure can be compared
    with others of that size, not with published ones.

    Args:
        a, b: clips (T, H, W, 3) or pictures (H, W, 3), tensors or arrays, in [0, 1].

    Raises:
        ValueError: as for :func:`psnr`.
        AccelError: frames of fewer than 97 pixels a side.
    """
    first, second = as_pair(a, b)
    return _mean_over_frames(_scaled_ssim, first, second, ms_ssim_window(*first.shape[1:3]))


def ms_ssim_window(height: int, width: int) -> int:
    """The window in pixels with which :func:`ms_ssim` measures frames of a size.

    Raises:
        AccelError: the frames are too small.
    """
    for window in (_WINDOW, _SMALL_WINDOW):
        if min(height, width) > _largest_too_small(window):
            return window
    least = _largest_too_small(_SMALL_WINDOW) + 1
    raise AccelError(f"MS-SSIM needs {least} pixels a side for its {_SCALES} scales, the frames have {height}x{width}")


def _largest_too_small(window: int) -> int:
    return (window - 1) * 2 ** (_SCALES - 1)


def _size(frames: Tensor) -> str:
    return f"{frames.shape[1]}x{frames.shape[2]}"


def _mean_over_frames(similarity: Callable[..., Tensor], first: Tensor, second: Tensor, size: int) -> float:
    # The package's own window is float32: it misses a sum of 1 by 3e-8, which costs flat frames 1e-5 of SSIM.
    place = torch.arange(size, dtype=torch.float64) - size // 2
    window = torch.exp(-place.square() / (2 * _SIGMA**2))
    window = (window / window.sum()).expand(3, 1, 1, size)
    values = []
    for parts in in_parts(first, second, _PIXELS_AT_ONCE):
        planes = [part.permute(0, 3, 1, 2).contiguous() for part in parts]
        values.append(similarity(*planes, data_range=1.0, win=window, size_average=False))
    return torch.cat(values).mean().item()
