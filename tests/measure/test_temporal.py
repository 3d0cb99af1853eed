"""Motion, flicker and frozen steps against figures worked out by hand."""

import math

import numpy as np
import pytest
import torch

from accel.errors import AccelError
from accel.measure.temporal import flicker, frozen_share, motion


def fade(frames=9, height=16, width=16):
    """Every pixel grows by 0.05 from frame to frame."""
    return (0.05 * torch.arange(frames, dtype=torch.float64))[:, None, None, None].expand(frames, height, width, 3)


def test_motion_is_the_mean_step_from_frame_to_frame():
    clip = torch.zeros(3, 4, 4, 3)
    assert motion(clip) == 0.0
    clip[1] = 0.5
    clip[2, :2] = 0.7
    assert motion(clip) == pytest.approx((0.5 + (0.2 + 0.5) / 2) / 2)
    with pytest.raises(AccelError, match="two frames"):
        motion(clip[:1])


def test_an_even_fade_moves_and_does_not_flicker():
    assert motion(fade()) == pytest.approx(0.05)
    assert flicker(fade()) == pytest.approx(0.0, abs=1e-12)


def test_flicker_of_a_blinking_clip():
    """Frames that alternate between 0.4 and 0.6 have second differences of twice the step."""
    clip = np.full((6, 8, 8, 3), 0.4)
    clip[1::2] = 0.6
    assert flicker(clip) == pytest.approx(0.4)
    assert motion(clip) == pytest.approx(0.2)


def test_flicker_of_noise_is_what_the_docstring_says():
    """A second difference of independent noise has the variance 1 + 4 + 1; its mean size is sqrt(2 / pi) of that."""
    noise = np.random.default_rng(0).standard_normal((20, 64, 64, 3))
    expected = math.sqrt(6) * math.sqrt(2 / math.pi)
    assert expected == pytest.approx(1.95, abs=0.005)
    assert flicker(0.5 + 0.02 * noise) == pytest.approx(0.02 * expected, rel=0.01)


def test_flicker_needs_three_frames():
    with pytest.raises(AccelError, match="three frames, the clip has 2"):
        flicker(fade(2))
    with pytest.raises(AccelError, match="three frames, the clip has 1"):
        flicker(np.zeros((8, 8, 3)))


def test_a_frozen_clip_its_reference_and_what_lies_between():
    reference = fade(9)
    assert frozen_share(reference[:1].expand_as(reference), reference) == 1.0
    assert frozen_share(reference, reference) == 0.0
    half = reference.clone()
    half[4:] = reference[4]
    assert frozen_share(half, reference) == 0.5
    held = reference[[0, 0, 2, 2, 4, 4, 6, 6, 8]]
    assert frozen_share(held, reference) == 0.5


def test_only_steps_in_which_the_reference_moves_are_asked_for():
    reference = fade(9).clone()
    reference[4:] = reference[4]
    assert frozen_share(reference, reference) == 0.0
    clip = reference.clone()
    clip[1] = clip[0]
    assert frozen_share(clip, reference) == 0.25


@pytest.mark.parametrize(("slowed", "share"), [(0.11, 0.0), (0.09, 1.0)])
def test_a_tenth_of_the_motion_is_where_a_step_counts_as_frozen(slowed, share):
    assert frozen_share(fade() * slowed, fade()) == share


def test_a_still_reference_freezes_nothing():
    still = torch.full((4, 8, 8, 3), 0.5)
    with pytest.raises(AccelError, match="the reference does not move"):
        frozen_share(still, still)
    with pytest.raises(AccelError, match="two frames"):
        frozen_share(still[:1], still[:1])


def test_clips_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        frozen_share(fade(4), fade(5))
