"""What the judge must catch, what it must pass, and what it says of what cannot be measured."""

import json
import math

import numpy as np
import pytest
import torch

from accel.measure.judge import FIGURES, judge
from accel.pipelines.demo.render import render
from accel.pipelines.demo.scenes import Scene

SCENES = (
    Scene("circle", "red", "left", "black"),
    Scene("square", "blue", "growing", "gray", "striped"),
)
MEASURED_BESIDE = ("psnr_db", "ssim", "ms_ssim", "vmaf", "motion_ratio", "frozen_share", "flicker_ratio")


def draw(scene, frames=13, side=128, seed=3):
    """A clip (T, H, W, 3) in [0, 1]."""
    video = render([scene], frames, side, side, torch.Generator().manual_seed(seed))
    return (video[0].permute(1, 2, 3, 0) + 1) / 2


def noisy(clip, sigma):
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    return (clip + sigma * noise).clamp(0, 1)


@pytest.fixture(scope="module", params=SCENES, ids=lambda scene: scene.motion)
def scene(request):
    return request.param


@pytest.fixture(scope="module")
def reference(scene):
    return draw(scene)


@pytest.fixture(scope="module")
def faithful(reference):
    """What a good cache makes of a clip: a little less detail, everywhere alike."""
    soft = torch.nn.functional.avg_pool2d(reference.permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False)
    return 0.5 * reference + 0.5 * soft.permute(0, 2, 3, 1)


@pytest.fixture(scope="module")
def faithful_verdict(faithful, reference, scene):
    return judge(faithful, reference, scene.caption())


def test_an_equal_clip(scene, reference):
    verdict = judge(reference, reference.clone(), scene.caption())
    assert verdict["flags"] == {}
    assert verdict["psnr_db"] == math.inf
    assert verdict["ssim"] == 1.0 and verdict["ms_ssim"] == 1.0
    assert 97.4 < verdict["vmaf"] <= 100
    assert verdict["motion_ratio"] == 1.0 and verdict["flicker_ratio"] == 1.0 and verdict["frozen_share"] == 0.0
    assert verdict["prompt_accuracy"] == 1.0
    assert set(verdict["reasons"]) == {"lpips", "clip_score"}


def test_a_faithful_clip_passes(faithful_verdict):
    assert faithful_verdict["flags"] == {}
    assert 22 < faithful_verdict["psnr_db"] < 45
    assert faithful_verdict["frozen_share"] == 0.0 and faithful_verdict["prompt_accuracy"] == 1.0
    assert faithful_verdict["motion_ratio"] == pytest.approx(1.0, abs=0.2)


def test_a_frozen_clip_is_caught_by_its_motion(scene, reference, faithful_verdict):
    verdict = judge(reference[:1].expand_as(reference), reference, scene.caption())
    assert verdict["frozen_share"] == 1.0 and verdict["motion_ratio"] == 0.0
    assert "100 % of the steps" in verdict["flags"]["frozen"]
    assert verdict["vmaf"] < faithful_verdict["vmaf"] - 20


def test_a_clip_that_freezes_towards_its_end_is_caught(scene, reference):
    clip = reference.clone()
    clip[9:] = clip[9]
    verdict = judge(clip, reference)
    assert verdict["frozen_share"] == 0.25
    assert set(verdict["flags"]) == {"frozen"}


def test_a_noisy_clip_is_caught_by_its_flicker(scene, reference, faithful_verdict):
    verdict = judge(noisy(reference, 0.02), reference, scene.caption())
    assert verdict["flicker_ratio"] > 1.5 > faithful_verdict["flicker_ratio"]
    assert set(verdict["flags"]) == {"flicker"}
    # Decibels pass it.
    assert verdict["psnr_db"] > 30


def test_a_shifted_clip_is_caught_by_psnr_and_ssim(scene, reference, faithful_verdict):
    verdict = judge(reference.roll(12, 2), reference, scene.caption())
    assert verdict["psnr_db"] < 22 < faithful_verdict["psnr_db"]
    assert verdict["ssim"] < faithful_verdict["ssim"] - 0.02
    assert set(verdict["flags"]) == {"unlike"}
    # It moves, flickers and shows what it should: nothing else can tell.
    assert verdict["motion_ratio"] == pytest.approx(1.0, rel=1e-6) and verdict["prompt_accuracy"] == 1.0


def test_a_swapped_prompt_is_caught_by_prompt_accuracy(reference, faithful_verdict, scene):
    (other,) = [one for one in SCENES if one != scene]
    made = draw(other)
    # Beside a reference that had the wrong prompt too, nothing but the prompt can tell.
    verdict = judge(made, made, scene.caption())
    assert verdict["prompt_accuracy"] == 0.0 < faithful_verdict["prompt_accuracy"]
    assert verdict["score"] == dict.fromkeys(("color", "shape", "motion", "background"), False)
    assert set(verdict["flags"]) == {"prompt"} and "color, shape, motion, background" in verdict["flags"]["prompt"]


def test_a_clip_with_values_that_are_not_finite_is_broken(reference):
    clip = reference.clone()
    clip[3, 5, 5, 1] = math.nan
    verdict = judge(clip, reference, "a red circle")
    assert set(verdict["flags"]) == {"broken"}
    assert all(verdict[name] is None and "not finite" in verdict["reasons"][name] for name in FIGURES)


def test_a_picture_has_the_figures_of_pictures():
    reference = draw(SCENES[0], frames=1)[0]
    verdict = judge(noisy(reference, 0.02), reference, SCENES[0].caption())
    assert verdict["psnr_db"] > 30 and verdict["ms_ssim"] < 1 and verdict["vmaf"] < 97.5
    assert set(verdict["score"]) == {"color", "shape", "background"} and verdict["prompt_accuracy"] == 1.0
    for name in ("motion", "motion_ratio", "frozen_share"):
        assert verdict[name] is None and "two frames" in verdict["reasons"][name]
    for name in ("flicker", "flicker_ratio"):
        assert verdict[name] is None and "three frames" in verdict["reasons"][name]


@pytest.mark.parametrize(
    ("shape", "missing"),
    [
        ((3, 1, 1, 3), {"ssim", "ms_ssim", "vmaf"}),
        ((3, 8, 10, 3), {"ssim", "ms_ssim", "vmaf"}),
        ((2, 16, 16, 3), {"ms_ssim", "vmaf", "flicker", "flicker_ratio"}),
        ((3, 40, 96, 3), {"ms_ssim"}),
    ],
)
def test_small_frames_have_what_they_allow(shape, missing):
    rng = np.random.default_rng(0)
    reference = rng.random(shape)
    verdict = judge((reference + 0.01 * rng.standard_normal(shape)).clip(0, 1), reference, "a red circle")
    absent = {name for name in FIGURES if verdict[name] is None}
    assert absent == missing | {"lpips", "clip_score"} == set(verdict["reasons"])


def test_without_a_reference_or_a_prompt(reference):
    verdict = judge(reference, None)
    for name in MEASURED_BESIDE:
        assert verdict[name] is None and "no reference" in verdict["reasons"][name]
    assert verdict["motion"] > 0 and verdict["flicker"] > 0 and verdict["flags"] == {}
    assert verdict["reasons"]["prompt_accuracy"] == "no prompt was given"
    named_nothing = judge(reference, None, "something else entirely")
    assert "names nothing" in named_nothing["reasons"]["prompt_accuracy"] and named_nothing["score"] is None


def test_noise_on_a_reference_that_stands_still():
    still = draw(SCENES[0], frames=1).expand(5, -1, -1, -1)
    verdict = judge(noisy(still, 0.02), still)
    assert set(verdict["flags"]) == {"flicker"} and "stands still" in verdict["flags"]["flicker"]
    assert verdict["flicker_ratio"] is None and verdict["frozen_share"] is None
    assert judge(still, still)["flags"] == {}


def test_the_verdict_is_plain_data_and_the_same_each_time(faithful, reference, faithful_verdict, scene):
    again = judge(faithful.double().numpy(), reference.numpy().astype(np.float64), scene.caption())
    assert again == faithful_verdict
    assert json.loads(json.dumps(again)) == again


def test_measures_with_weights_are_asked_when_they_are_given(reference):
    asked = []

    class Distance:
        def __call__(self, clip, other):
            asked.append((clip.shape, other.shape))
            return 0.25

    class Likeness:
        def __call__(self, clip, prompt):
            asked.append(prompt)
            return 31.0

    verdict = judge(reference, reference, "a fox", lpips=Distance(), clip_score=Likeness())
    assert verdict["lpips"] == 0.25 and verdict["clip_score"] == 31.0
    assert asked == [(reference.shape, reference.shape), "a fox"]


@pytest.mark.parametrize(
    ("frames", "beside", "complaint"),
    [
        (np.zeros((2, 8, 8, 3)), np.zeros((3, 8, 8, 3)), "differ in shape"),
        (np.zeros((2, 8, 8, 4)), None, "neither"),
        (np.full((2, 8, 8, 3), 255.0), np.zeros((2, 8, 8, 3)), "do not lie in"),
    ],
)
def test_what_is_no_pair_of_clips_is_refused(frames, beside, complaint):
    with pytest.raises(ValueError, match=complaint):
        judge(frames, beside)
