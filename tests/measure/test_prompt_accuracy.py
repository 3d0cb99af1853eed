"""The prompt detector: sure of clean clips, and not to be fooled by broken ones."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from accel.measure.prompt_accuracy import SCORED, detect, prompt_accuracy, score
from accel.pipelines.demo.render import render
from accel.pipelines.demo.scenes import ATTRIBUTES, BACKGROUNDS, COLORS, Scene

NOTHING = dict.fromkeys(SCORED)


def draw(scenes, frames=9, height=128, width=128, seed=0):
    """Clips (B, T, H, W, 3) in [0, 1], laid out as diffusers' `output_type="np"`."""
    video = render(scenes, frames, height, width, torch.Generator().manual_seed(seed))
    return (video.permute(0, 2, 3, 4, 1) + 1) / 2


def draw_one(*words, seed=0, **options):
    return draw([Scene(*words)], seed=seed, **options)[0]


def seen(video):
    detection = detect(video)
    return {name: getattr(detection, name) for name in SCORED}


def blur(video, sigma):
    """A Gaussian blur of sigma pixels in both directions, with the border repeated."""
    reach = int(3 * sigma)
    place = torch.arange(-reach, reach + 1, dtype=torch.float32)
    window = torch.exp(-place.square() / (2 * sigma**2))
    window = window / window.sum()
    planes = video.permute(0, 3, 1, 2).flatten(0, 1)[:, None]
    planes = torch.nn.functional.pad(planes, (reach,) * 4, mode="replicate")
    planes = conv2d(conv2d(planes, window[None, None, None]), window[None, None, :, None])
    return planes.view(len(video), 3, *video.shape[1:3]).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("count", "frames", "height", "width", "seed"),
    [(140, 9, 128, 128, 0), (12, 65, 128, 128, 1), (10, 9, 96, 176, 2), (4, 5, 256, 256, 3)],
)
def test_clean_clips_are_recognised(count, frames, height, width, seed):
    rng, right = Random(seed), []
    for number in range(count):
        scene = Scene.random(rng)
        video = draw([scene], frames, height, width, seed=1000 * seed + number)[0]
        right.append(score(video, scene.caption()))
    for name in SCORED:
        assert sum(one[name] for one in right) / count >= 0.97, name


@pytest.mark.parametrize("attribute", SCORED)
def test_every_word_is_recognised(attribute):
    plain = Scene("circle", "red", "left", "gray")
    scenes = [replace(plain, **{attribute: word}) for word in ATTRIBUTES[attribute]]
    for scene, video in zip(scenes, draw(scenes, seed=4), strict=True):
        assert seen(video)[attribute] == getattr(scene, attribute)


def test_slightly_soft_and_noisy_clips_are_recognised():
    """About as soft as what a small video autoencoder gives back."""
    rng, noise = Random(5), torch.Generator().manual_seed(5)
    right = []
    for number in range(20):
        scene = Scene.random(rng)
        video = blur(draw([scene], seed=number)[0], 1.5)
        video = (video + 0.03 * torch.randn(video.shape, generator=noise)).clamp(0, 1)
        right.append(score(video, scene.caption()))
    for name in SCORED:
        assert sum(one[name] for one in right) / 20 >= 0.9, name


def test_a_clip_of_another_word_does_not_score():
    rng = Random(6)
    for number in range(24):
        scene = Scene.random(rng)
        video = draw([scene], seed=number)[0]
        for attribute in SCORED:
            other = rng.choice([word for word in ATTRIBUTES[attribute] if word != getattr(scene, attribute)])
            verdicts = score(video, replace(scene, **{attribute: other}).caption())
            assert verdicts == {name: name != attribute for name in SCORED}


def test_a_clip_run_backwards_moves_the_other_way():
    opposite = {"left": "right", "up": "down", "growing": "shrinking"}
    for forwards, backwards in opposite.items():
        video = draw_one("square", "cyan", forwards, "brown")
        assert seen(video)["motion"] == forwards
        assert seen(video.flip(0))["motion"] == backwards


NOISES = {
    "uniform": lambda g: torch.rand(9, 128, 128, 3, generator=g),
    "gaussian": lambda g: (0.5 + 0.3 * torch.randn(9, 128, 128, 3, generator=g)).clamp(0, 1),
    "frozen": lambda g: torch.rand(1, 128, 128, 3, generator=g).expand(9, -1, -1, -1),
    "soft": lambda g: (0.5 + 3 * (blur(torch.rand(9, 128, 128, 3, generator=g), 6) - 0.5) * 6).clamp(0, 1),
    "black and white": lambda g: torch.rand(9, 128, 128, 1, generator=g).round().expand(-1, -1, -1, 3),
    "of one color": lambda g: (
        torch.tensor(BACKGROUNDS["black"])
        + torch.rand(9, 128, 128, 1, generator=g).round()
        * (torch.tensor(COLORS["red"]) - torch.tensor(BACKGROUNDS["black"]))
    ),
}


@pytest.mark.parametrize("kind", NOISES)
def test_noise_shows_nothing(kind):
    for seed in range(3):
        assert seen(NOISES[kind](torch.Generator().manual_seed(seed))) == NOTHING


@pytest.mark.parametrize("word", [*BACKGROUNDS, *COLORS])
def test_an_empty_frame_shows_nothing(word):
    tone = {**BACKGROUNDS, **COLORS}[word]
    assert seen(torch.tensor(tone).expand(9, 128, 128, 3)) == NOTHING


def test_several_pieces_are_not_an_object():
    video = draw_one("circle", "green", "right", "black", height=64, width=64)
    assert seen(video)["color"] == "green"
    assert seen(video.repeat(1, 2, 2, 1)) == NOTHING
    assert detect(video.repeat(1, 2, 2, 1)).components == pytest.approx(4, abs=0.5)


def test_a_broken_outline_is_not_an_object():
    """A ring with bars of background across it, as undertrained models draw them."""
    video = draw_one("ring", "yellow", "growing", "white", seed=2)
    bars = (torch.arange(128) // 6) % 2 == 0
    broken = torch.where(bars[:, None], torch.tensor(BACKGROUNDS["white"]), video)
    assert seen(video)["shape"] == "ring"
    assert seen(broken) == NOTHING


def test_an_object_of_two_colors_is_not_an_object():
    red, blue = (draw_one("square", color, "growing", "gray") for color in ("red", "blue"))
    bars = (torch.arange(128) // 8) % 2 == 0
    assert seen(torch.where(bars[:, None], red, blue)) == NOTHING
    columns = (red != blue).any(-1).any(0).any(0).nonzero().float()
    left = torch.arange(128)[:, None] < columns.mean()
    assert detect(torch.where(left, red, blue)).frames > 0.9  # each half alone would pass for an object
    assert seen(torch.where(left, red, blue)) == NOTHING
    early = (torch.arange(9) < 5)[:, None, None, None]
    assert seen(torch.where(early, red, blue)) == NOTHING


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
def test_smears_are_not_objects(shape):
    video = draw_one(shape, "red", "right", "black", seed=3)
    assert seen(blur(video, 1))["shape"] == shape
    assert seen(blur(video, 10)) == NOTHING


def test_a_large_soft_blob_is_no_object():
    """Large enough to keep its colour in the middle: only the outline gives it away."""
    video = blur(draw_one("circle", "red", "growing", "black", seed=3)[4:], 8)
    detection = detect(video)
    assert detection.purity > 0.7 and detection.components == 1
    assert seen(video) == NOTHING


def test_a_streak_has_neither_shape_nor_motion():
    """All frames of a moving object on top of each other."""
    video = draw_one("circle", "red", "right", "black", frames=33)
    streak = video.amax(0, keepdim=True).expand(9, -1, -1, -1)
    assert seen(streak)["shape"] is None
    assert seen(streak)["motion"] in (None, "static")


def test_an_irregular_piece_has_no_shape():
    video = draw_one("square", "blue", "up", "gray")
    corner = torch.tensor(BACKGROUNDS["gray"]).expand(9, 128, 128, 3).clone()
    corner[:, 30:90, 30:44] = corner[:, 76:90, 30:110] = torch.tensor(COLORS["blue"])
    assert seen(video)["shape"] == "square"
    assert seen(corner) == {"color": "blue", "shape": None, "motion": "static", "background": "gray"}


def test_a_frozen_clip_is_static():
    rng = Random(8)
    for number in range(12):
        scene = Scene.random(rng)
        frozen = draw([scene], seed=number)[0][4:5].expand(9, -1, -1, -1)
        noisy = (frozen + 0.02 * torch.randn(9, 128, 128, 3, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
        for video in (frozen, noisy):
            assert seen(video)["motion"] == "static"
        verdicts = score(frozen, scene.caption())
        assert verdicts["color"] and not verdicts["motion"]


def test_a_single_frame_is_static():
    assert seen(draw_one("ring", "red", "left", "navy", frames=1))["motion"] == "static"


def test_frames_out_of_order_have_no_motion():
    for motion in ("left", "down", "growing"):
        video = draw_one("circle", "purple", motion, "white", frames=17)
        jumbled = video[[0, 13, 4, 16, 8, 2, 12, 6, 15, 1, 10, 5, 14, 3, 9, 11, 7]]
        assert seen(jumbled)["motion"] in (None, "static")


def test_a_jump_is_no_motion():
    video = draw_one("circle", "purple", "left", "white")
    jump = video[[0, 0, 0, 0, 8, 8, 8, 8]]
    assert detect(jump).displacement[0] < -0.4
    assert seen(jump)["motion"] is None


def test_a_diagonal_is_no_motion_that_a_prompt_can_name():
    still = draw_one("circle", "cyan", "right", "black", frames=1)[0]
    video = torch.stack([still.roll((4 * step, 4 * step), (0, 1)) for step in range(9)])
    assert detect(video).displacement == pytest.approx((0.25, 0.25), abs=0.02)
    assert seen(video)["motion"] is None


def test_an_object_that_is_gone_half_the_time_is_none():
    video = draw_one("circle", "cyan", "right", "black").clone()
    video[3:7] = torch.tensor(BACKGROUNDS["black"])
    assert seen(video) == NOTHING


@pytest.mark.parametrize(("low", "high"), [(60, 61), (60, 66), (8, 120)])
def test_specks_and_walls_are_not_objects(low, high):
    video = torch.tensor(BACKGROUNDS["gray"]).expand(9, 128, 128, 3).clone()
    video[:, low:high, low:high] = torch.tensor(COLORS["green"])
    assert seen(video) == NOTHING


@pytest.mark.parametrize("tone", [(1.0, 0.5, 0.0), (1.0, 0.4, 0.7), (0.6, 1.0, 0.3)])
def test_a_color_that_the_palette_does_not_have_is_none(tone):
    video = torch.tensor(BACKGROUNDS["gray"]).expand(9, 128, 128, 3).clone()
    video[:, 40:80, 40:80] = torch.tensor(tone)
    assert seen(video) == NOTHING


def test_a_noisy_backdrop_is_no_background():
    video = draw_one("circle", "red", "growing", "gray").clone()
    gray = torch.rand(9, 128, 128, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 3)
    backdrop = video.amax(-1) - video.amin(-1) < 0.1
    video[backdrop] = gray[backdrop]
    assert seen(video) == {"color": "red", "shape": "circle", "motion": "growing", "background": None}


def test_specks_are_not_components():
    video = draw_one("circle", "red", "left", "black").clone()
    assert detect(video).components == 1
    video[:, 2, 2] = video[:, 120, 120] = torch.tensor(COLORS["red"])
    assert detect(video).components == 1
    assert seen(video)["shape"] == "circle"


def test_the_figures_behind_a_verdict():
    detection = detect(draw_one("circle", "red", "left", "black", seed=1))
    assert detection.frames == 1.0 and detection.components == 1.0
    assert detection.purity > 0.9 and detection.fit > 0.9 and detection.evenness > 0.99 and detection.backdrop == 1.0
    assert -0.59 < detection.displacement[0] < -0.41 and abs(detection.displacement[1]) < 0.01
    assert 3.14 * 0.13**2 < detection.area < 3.15 * 0.2**2 and detection.edge < 0.02
    growing = detect(draw_one("circle", "red", "growing", "black", seed=1))
    assert growing.growth > 0.75 and max(map(abs, growing.displacement)) < 0.02


def test_arrays_and_half_precision_are_taken():
    video = draw_one("triangle", "yellow", "up", "navy")
    expected = {"color": "yellow", "shape": "triangle", "motion": "up", "background": "navy"}
    assert detect(video) == detect(video.numpy())
    assert seen(video.numpy()) == seen(video.numpy().astype(np.float16)) == seen(video.bfloat16()) == expected


@pytest.mark.parametrize(
    ("video", "complaint"),
    [
        (torch.rand(3, 9, 64, 64), r"\(frames, height, width, 3\)"),
        (torch.rand(64, 64, 3), r"\(frames, height, width, 3\)"),
        (torch.rand(0, 64, 64, 3), r"\(frames, height, width, 3\)"),
        (torch.full((2, 64, 64, 3), float("nan")), "not finite"),
        (torch.zeros(2, 64, 64, 3, dtype=torch.uint8), "divide by 255"),
    ],
)
def test_what_is_no_video_is_refused(video, complaint):
    with pytest.raises(ValueError, match=complaint):
        detect(video)


def test_only_named_attributes_are_scored():
    video = draw_one("circle", "red", "left", "black")
    assert score(video, "a red square") == {"color": True, "shape": False}
    assert score(video, "something moving left on a striped background") == {"motion": True}
    assert score(video, "a dog") == {}


def test_accuracy_is_a_mean_over_the_clips_that_were_asked():
    videos = draw([Scene("circle", "red", "left", "black"), Scene("ring", "blue", "growing", "white")])
    accuracy = prompt_accuracy([*videos, videos[0]], ["a red circle", "a blue square growing", "a dog"])
    assert accuracy == {"color": 1.0, "shape": 0.5, "motion": 1.0, "all": 0.5}
    assert prompt_accuracy(videos, ["a red circle moving left", "a blue ring on a white background"])["all"] == 1.0


@pytest.mark.parametrize(("count", "prompts"), [(2, ["red"]), (0, []), (1, ["a dog"])])
def test_an_accuracy_of_nothing_is_refused(count, prompts):
    videos = draw([Scene("circle", "red", "left", "black")] * count) if count else []
    with pytest.raises(ValueError, match="prompt") as refusal:
        prompt_accuracy(videos, prompts)
    assert "\n" not in str(refusal.value)
