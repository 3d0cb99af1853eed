"""PSNR, SSIM and MS-SSIM against closed forms and against sums written out by hand."""

import math

import numpy as np
import pytest
import torch

from accel.errors import AccelError
from accel.measure.quality import ms_ssim, ms_ssim_window, psnr, ssim


def clips(frames=3, height=24, width=20):
    rng = np.random.default_rng(0)
    first = rng.random((frames, height, width, 3))
    return first, (first + 0.1 * rng.standard_normal(first.shape)).clip(0, 1)


@pytest.mark.parametrize(("offset", "decibels"), [(0.1, 20.0), (0.01, 40.0), (0.5, 20 * math.log10(2))])
def test_psnr_of_a_constant_error(offset, decibels):
    black = torch.zeros(2, 16, 16, 3)
    assert psnr(black, black + offset) == pytest.approx(decibels, abs=1e-5)


def test_psnr_takes_the_error_over_all_frames_together():
    """One frame wrong by 0.2 and three right: the mean of squares is 0.01, not a mean of decibels."""
    first = np.zeros((4, 8, 8, 3), dtype=np.float32)
    second = first.copy()
    second[2] = 0.2
    assert psnr(first, second) == pytest.approx(20.0, abs=1e-5)


def test_psnr_with_another_range():
    first, second = clips()
    assert psnr(first * 255, second * 255, data_range=255) == pytest.approx(psnr(first, second))


def test_equal_clips():
    first, _ = clips()
    assert psnr(first, first) == math.inf
    assert ssim(first, first) == 1.0
    larger = clips(frames=2, height=97, width=101)[0]
    assert ms_ssim(larger, larger.copy()) == 1.0


@pytest.mark.parametrize(("dark", "bright"), [(0.2, 0.6), (0.0, 1.0), (0.5, 0.5)])
def test_ssim_of_flat_frames_is_the_luminance_term(dark, bright):
    """Without variance only (2 m n + C1) / (m^2 + n^2 + C1) is left."""
    expected = (2 * dark * bright + 1e-4) / (dark**2 + bright**2 + 1e-4)
    frames = torch.ones(2, 16, 16, 3, dtype=torch.float64)
    assert ssim(frames * dark, frames * bright) == pytest.approx(expected, rel=1e-9)


def test_ssim_against_the_formula_written_out():
    first, second = clips(frames=2, height=13, width=14)
    place = np.arange(11) - 5
    window = np.exp(-(place**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    values = []
    for a, b in zip(first, second, strict=True):
        for channel in range(3):
            for row in range(3):
                for column in range(4):
                    x = a[row : row + 11, column : column + 11, channel]
                    y = b[row : row + 11, column : column + 11, channel]
                    mx, my = (window * x).sum(), (window * y).sum()
                    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                    cov = (window * (x - mx) * (y - my)).sum()
                    luminance = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
                    values.append(luminance * (2 * cov + 9e-4) / (vx + vy + 9e-4))
    assert ssim(first, second) == pytest.approx(np.mean(values), rel=1e-9)


def test_pictures_tensors_and_arrays_are_taken_alike():
    first, second = clips(frames=1)
    pictures = torch.from_numpy(first[0]).requires_grad_(), torch.from_numpy(second[0])
    for measure in (psnr, ssim):
        value = measure(first, second)
        assert isinstance(value, float)
        assert measure(*pictures) == pytest.approx(value, rel=1e-12)
        assert measure(second, first) == pytest.approx(value, rel=1e-9)


NAN = np.full((16, 16, 3), np.nan)
GRAY = np.full((16, 16, 3), 0.5)


@pytest.mark.parametrize("measure", [psnr, ssim, ms_ssim])
@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        (GRAY, GRAY[:12], "differ in shape"),
        (GRAY, GRAY[None, :, :, :1], "neither"),
        (GRAY[..., 0], GRAY[..., 0], "neither"),
        (GRAY[:0], GRAY[:0], "neither"),
        (NAN, GRAY, "first clip has values that are not finite"),
        (GRAY, NAN * np.inf, "second clip has values that are not finite"),
        (GRAY * 255, GRAY * 255, "do not lie in"),
        (GRAY - 0.6, GRAY, "do not lie in"),
    ],
)
def test_bad_clips_are_refused_in_one_line(measure, first, second, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        measure(first, second)
    assert "\n" not in str(refusal.value)


def test_ssim_refuses_frames_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 pixels a side"):
        ssim(GRAY[:10], GRAY[:10])


def five_scales(first, second, size):
    """Equation 7 of the paper for one picture (H, W, 3) with sides that halve evenly."""
    place = np.arange(size) - size // 2
    window = np.exp(-(place**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def filtered(plane):
        patches = np.lib.stride_tricks.sliding_window_view(plane, (size, size))
        return (patches * window).sum((2, 3))

    values = []
    for channel in range(3):
        a, b, product = first[..., channel], second[..., channel], 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            if scale:
                a, b = (plane.reshape(len(plane) // 2, 2, -1, 2).mean((1, 3)) for plane in (a, b))
            mean_a, mean_b = filtered(a), filtered(b)
            contrast = (2 * (filtered(a * b) - mean_a * mean_b) + 9e-4) / (
                filtered(a * a) - mean_a**2 + filtered(b * b) - mean_b**2 + 9e-4
            )
            if scale == 4:
                contrast = contrast * (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
            product *= contrast.mean() ** weight
        values.append(product)
    return np.mean(values)


@pytest.mark.parametrize(("height", "width", "window"), [(112, 128, 7), (176, 192, 11)])
def test_ms_ssim_against_the_formula_written_out(height, width, window):
    first, second = clips(frames=1, height=height, width=width)
    assert ms_ssim_window(height, width) == window
    expected = five_scales(first[0], second[0], window)
    assert 0.5 < expected < 0.999
    assert ms_ssim(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("measure", "side"), [(ssim, 64), (ms_ssim, 128)])
def test_a_clip_of_many_parts_has_the_mean_of_its_frames(measure, side):
    """More frames than are measured at a time, and a number that no part divides."""
    first, second = clips(frames=19, height=side, width=side)
    alone = [measure(a, b) for a, b in zip(first, second, strict=True)]
    assert measure(first, second) == pytest.approx(np.mean(alone), rel=1e-9)


@pytest.mark.parametrize(("sides", "window"), [((97, 400), 7), ((160, 160), 7), ((161, 161), 11), ((480, 832), 11)])
def test_the_window_of_ms_ssim(sides, window):
    assert ms_ssim_window(*sides) == window


def test_ms_ssim_refuses_frames_smaller_than_its_scales():
    small = np.full((2, 96, 200, 3), 0.5)
    with pytest.raises(AccelError, match=r"97 pixels a side .* 96x200"):
        ms_ssim(small, small)
