"""The scenes of the built-in model: captions that can be read back, and videos that show what they should."""

import json
import math
from random import Random

import pytest
import torch

from accel.errors import AccelError
from accel.pipelines import demo
from accel.pipelines.demo import render as rendering
from accel.pipelines.demo.render import render, signed_distance
from accel.pipelines.demo.scenes import ATTRIBUTES, COLORS, MOTIONS, SHAPES, Scene, parse

TOKENIZER = demo.WEIGHTS / "tokenizer" / "tokenizer.json"


def test_canonical_captions():
    moving = Scene("circle", "red", "left", "black", "plain")
    assert moving.caption() == "a red circle moving left on a plain black background"
    growing = Scene("ring", "cyan", "growing", "navy", "striped")
    assert growing.caption() == "a cyan ring growing on a striped navy background"


def test_random_scenes_follow_the_seed_and_reach_every_word():
    rng, again = Random(3), Random(3)
    scenes = [Scene.random(rng) for _ in range(200)]
    assert scenes == [Scene.random(again) for _ in range(200)]
    for attribute, words in ATTRIBUTES.items():
        assert {getattr(scene, attribute) for scene in scenes} == set(words)


def test_captions_are_read_back():
    rng = Random(0)
    for _ in range(300):
        scene = Scene.random(rng)
        words = {name: getattr(scene, name) for name in ATTRIBUTES}
        assert parse(scene.caption()) == words
        read = parse(scene.paraphrase(rng))
        unsaid = {"background", "texture"}
        assert all(read[name] == word or (name in unsaid and read[name] is None) for name, word in words.items())


def test_the_tokenizer_knows_every_word_of_the_captions():
    vocabulary = json.loads(TOKENIZER.read_text(encoding="utf-8"))["model"]["vocab"]
    rng = Random(1)
    for _ in range(500):
        scene = Scene.random(rng)
        for caption in (scene.caption(), scene.paraphrase(rng)):
            assert set(caption.split()) <= set(vocabulary), caption


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("A Red circle, moving LEFT.", {"color": "red", "shape": "circle", "motion": "left"}),
        ("the ring grows", {"shape": "ring", "motion": "growing"}),
        ("a square on a blue background that is red", {"shape": "square", "color": "red"}),
        ("a white circle on brown", {"shape": "circle", "background": "brown"}),
        ("a dog in the snow", {}),
        ("", {}),
    ],
)
def test_prompts_are_read_word_by_word(prompt, named):
    assert parse(prompt) == {name: named.get(name) for name in ATTRIBUTES}


@pytest.mark.parametrize(
    ("field", "word", "hint"),
    [
        ("color", "rde", "'red'"),
        ("shape", "hexagon", "circle"),
        ("motion", "lef", "'left'"),
        ("texture", 3, "plain"),
    ],
)
def test_unknown_words_are_refused_with_the_nearest(field, word, hint):
    words = {"shape": "ring", "color": "red", "motion": "up", "background": "navy", "texture": "plain"}
    with pytest.raises(AccelError, match=hint) as refusal:
        Scene(**{**words, field: word})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_area_and_centroid_are_those_of_the_outline(shape):
    grid = (torch.arange(1200) + 0.5) / 300 - 2
    inside = signed_distance(shape, grid, grid[:, None], torch.tensor(1.0)) < 0
    assert inside.sum().item() / 300**2 == pytest.approx(rendering.AREA[shape], rel=0.01)
    assert grid[inside.nonzero()[:, 0]].mean().item() == pytest.approx(rendering.CENTROID[shape], abs=0.005)


def test_render_gives_float_video_in_range_and_follows_the_generator():
    rng = Random(0)
    scenes = [Scene.random(rng) for _ in range(3)]
    video = render(scenes, 5, 48, 80, torch.Generator().manual_seed(7))
    assert video.shape == (3, 3, 5, 48, 80) and video.dtype == torch.float32
    assert video.min() >= -1 and video.max() <= 1
    assert torch.equal(video, render(scenes, 5, 48, 80, torch.Generator().manual_seed(7)))
    assert not torch.equal(video, render(scenes, 5, 48, 80, torch.Generator().manual_seed(8)))
    assert torch.equal(render(scenes, 5, 48, 80), render(scenes, 5, 48, 80, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("motion", MOTIONS)
def test_objects_have_the_size_and_path_of_their_motion(shape, motion):
    """The object on black, found by its brightness, is where and as large as its caption says."""
    video = render([Scene(shape, "green", motion, "black")], 9, 96, 96, torch.Generator().manual_seed(5))[0]
    cover = (video[1] + 1) / 2 - 0.06
    weight = cover.clamp(min=0.1) - 0.1
    area = weight.sum((1, 2)) / (COLORS["green"][1] - 0.16) / 96**2
    grid = (torch.arange(96) + 0.5) / 96
    x = (weight.sum(1) @ grid) / weight.sum((1, 2))
    y = (weight.sum(2) @ grid) / weight.sum((1, 2))
    moved = {"left": x[0] - x[-1], "right": x[-1] - x[0], "up": y[0] - y[-1], "down": y[-1] - y[0]}
    diameter = (area / rendering.AREA[shape]).sqrt()
    if motion in moved:
        assert 0.41 < moved[motion] < 0.59
        assert diameter.min() > 0.12 and diameter.max() < 0.21
    else:
        small, large = (diameter[0], diameter[-1]) if motion == "growing" else (diameter[-1], diameter[0])
        assert 0.06 < small < 0.105 and 0.23 < large < 0.31
        assert max(abs(value) for value in moved.values()) < 0.03


@pytest.mark.parametrize("texture", ATTRIBUTES["texture"])
def test_textures_have_two_tones(texture):
    video = render([Scene("circle", "red", "growing", "gray", texture)], 1, 128, 128)[0, :, 0]
    brightness = ((video + 1) / 2)[:, 100:].mean(0)
    contrast = (brightness.max() - brightness.min()).item()
    assert contrast == pytest.approx(0.0 if texture == "plain" else 0.16, abs=1e-3)


@pytest.mark.parametrize(("scenes", "frames", "side"), [([], 5, 64), (None, 0, 64), (None, 5, 4)])
def test_impossible_renderings_are_refused(scenes, frames, side):
    scenes = [Scene("circle", "red", "up", "black")] if scenes is None else scenes
    with pytest.raises(ValueError, match="cannot render"):
        render(scenes, frames, side, side)


def test_the_shape_of_a_distance_must_exist():
    with pytest.raises(ValueError, match="star"):
        signed_distance("star", torch.zeros(1), torch.zeros(1), torch.ones(1))
    assert math.isclose(rendering.AREA["circle"], math.pi)
