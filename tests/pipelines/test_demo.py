"""The built-in model: its own defaults, a genuine WanPipeline in all else, and early, clear refusals."""

import copy
import inspect
import pickle
import warnings
from pathlib import Path
from random import Random
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from accel.errors import AccelError, AccelWarning
from accel.pipelines import demo
from accel.pipelines.demo.pipeline import CLASSES
from accel.pipelines.demo.scenes import Scene
from accel.pipelines.demo.vocabulary import GROUPS, describe_vocabulary, unknown_words
from accel.pipelines.loading import load_pipeline

PROMPT = "a red circle moving left on a plain black background"


@pytest.fixture(scope="module")
def pipe() -> Any:
    quick = load_pipeline("demo", size="quick")
    quick.set_progress_bar_config(disable=True)
    return quick


def run(pipe: Any, *args: Any, **kwargs: Any) -> np.ndarray:
    """Frames (T, H, W, 3) of a two-step run from fixed noise."""
    kwargs = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(5), **kwargs}
    return pipe(*args, **kwargs).frames[0]


def test_is_a_wan_pipeline(pipe: Any) -> None:
    assert isinstance(pipe, diffusers.WanPipeline)
    assert type(pipe).__name__ == "WanPipeline"
    assert pipe.config["_name_or_path"] == str(demo.WEIGHTS)


@pytest.mark.parametrize("size", demo.SIZES)
def test_signature_differs_from_diffusers_in_the_defaults_only(size: str) -> None:
    plain = inspect.signature(diffusers.WanPipeline.__call__).parameters
    ours = inspect.signature(CLASSES[size].__call__).parameters
    defaults = demo.defaults(size)
    assert list(ours) == list(plain)
    assert [(p.kind, p.annotation) for p in ours.values()] == [(p.kind, p.annotation) for p in plain.values()]
    changed = {name: p.default for name, p in ours.items() if p.default != plain[name].default}
    assert changed == {name: value for name, value in defaults.items() if name != "fps"}
    assert set(changed) == {
        *("height", "width", "num_frames", "num_inference_steps"),
        *("guidance_scale", "max_sequence_length"),
    }


def test_defaults_are_the_trained_sizes() -> None:
    standard, quick = demo.defaults(), demo.defaults("quick")
    assert (standard["height"], standard["width"], standard["num_frames"]) == (128, 128, 65)
    assert (quick["height"], quick["width"], quick["num_frames"]) == (128, 128, 9)
    assert standard["fps"] > 0 and quick["fps"] > 0


def test_an_unknown_size_names_the_nearest() -> None:
    with pytest.raises(AccelError, match='it has "standard" and "quick"; did you mean "quick"'):
        demo.defaults("quik")


def test_saved_it_loads_as_a_plain_wan_pipeline(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    assert '"_class_name": "WanPipeline"' in (tmp_path / "model_index.json").read_text()
    plain = diffusers.WanPipeline.from_pretrained(tmp_path)
    assert type(plain) is diffusers.WanPipeline
    for name in ("text_encoder", "transformer", "vae"):
        ours, theirs = (getattr(p, name).state_dict() for p in (pipe, plain))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_call_without_sizes_equals_a_plain_call_with_them(pipe: Any) -> None:
    # On the same components: weights that lie elsewhere in memory may round differently.
    plain = diffusers.WanPipeline(**pipe.components)
    plain.set_progress_bar_config(disable=True)

    expected = run(plain, PROMPT, height=128, width=128, num_frames=9, guidance_scale=4.0, max_sequence_length=24)
    assert expected.shape == (9, 128, 128, 3)
    assert expected.std() > 0.01
    for frames in (
        run(pipe, PROMPT),
        run(pipe, PROMPT, "", 128),
        run(pipe, prompt=PROMPT, negative_prompt=""),
    ):
        assert np.array_equal(frames, expected)
    assert not np.array_equal(run(pipe, PROMPT, guidance_scale=1.0), expected)


def test_other_arguments_reach_diffusers(pipe: Any) -> None:
    seen = []

    def note(_: Any, step: int, __: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((step, tuple(tensors["latents"].shape)))
        return {}

    frames = run(
        pipe,
        [PROMPT, "a blue square"],
        num_frames=5,
        height=64,
        width=96,
        output_type="pt",
        callback_on_step_end=note,
    )
    assert frames.shape == (5, 3, 64, 96)
    assert seen == [(step, (2, 16, 3, 8, 12)) for step in range(2)]


def test_embeddings_stand_in_for_a_prompt(pipe: Any) -> None:
    with torch.no_grad():
        positive, negative = pipe.encode_prompt(PROMPT, max_sequence_length=24)
    frames = run(pipe, prompt_embeds=positive, negative_prompt_embeds=negative)
    assert np.array_equal(frames, run(pipe, PROMPT))


def test_pickle_and_deepcopy(pipe: Any) -> None:
    expected = run(pipe, PROMPT, num_frames=1)
    for twin in (pickle.loads(pickle.dumps(pipe)), copy.deepcopy(pipe)):
        assert type(twin) is type(pipe)
        assert np.array_equal(run(twin, PROMPT, num_frames=1), expected)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ({"prompt": ""}, "the prompt is empty; try "),
        ({"prompt": "  \n"}, "the prompt is empty; try "),
        ({"prompt": [PROMPT, ""]}, "the prompt is empty; try "),
        ({"prompt": None}, "no prompt is given; try "),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": 3}, "prompt must be a text or a list of texts, not int"),
        ({"prompt": [PROMPT, 3]}, "prompt must be a text or a list of texts, not list"),
        ({"negative_prompt": b"red"}, "negative_prompt must be a text or a list of texts, not bytes"),
        (
            {"negative_prompt": ["", ""], "prompt": [PROMPT] * 3},
            "prompts: 3, negative prompts: 2; give as many",
        ),
        ({"negative_prompt": ["", ""]}, "prompts: 1, negative prompts: 2; give as many"),
        ({"prompt_embeds": torch.zeros(1, 24, 128)}, "prompt and prompt_embeds are both given"),
        (
            {"negative_prompt": "red", "negative_prompt_embeds": torch.zeros(1, 24, 128)},
            "negative_prompt and negative_prompt_embeds are both given",
        ),
        ({"height": 100}, "height=100 is not a multiple of 16; the nearest that works is 96"),
        ({"width": 121}, "width=121 is not a multiple of 16; the nearest that works is 128"),
        ({"height": 8}, "height=8 is too small; the nearest that works is 16"),
        ({"height": -16}, "height=-16 is too small; the nearest that works is 16"),
        ({"width": 4112}, "width=4112 is more than the model can place; the most that works is 4096"),
        ({"width": 128.0}, "width must be a whole number, not 128.0"),
        ({"width": True}, "width must be a whole number, not True"),
        ({"height": None}, "height must be a whole number, not None"),
        ({"height": "128"}, "height must be a whole number, not '128'"),
        ({"num_frames": 8}, "num_frames=8 is not odd; the nearest that works is 9"),
        ({"num_frames": 600}, "num_frames=600 is not odd; the nearest that works is 511"),
        ({"num_frames": 601}, "num_frames=601 is more than the model can place; the most that works is 511"),
        ({"num_frames": 0}, "num_frames=0 is too small; the nearest that works is 1"),
        ({"num_frames": -3}, "num_frames=-3 is too small; the nearest that works is 1"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 is too small; the nearest that works is 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be a whole number, not 2.5"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt=0 is too small"),
        ({"max_sequence_length": 1}, "max_sequence_length=1 is too small; the nearest that works is 2"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, such as 4.0 .*, not nan"),
        ({"guidance_scale": "4"}, "guidance_scale must be a finite number"),
        ({"output_type": "mp4"}, "output_type must be one of np, pt, pil, latent, not 'mp4'"),
    ],
)
def test_refusals_come_before_any_work(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, call: dict[str, Any], line: str
) -> None:
    for component in (pipe.text_encoder, pipe.transformer, pipe.vae):
        monkeypatch.setattr(component, "forward", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(AccelError, match=line) as refused:
        pipe(**{"prompt": PROMPT, **call})
    assert "\n" not in str(refused.value)


def test_numpy_numbers_are_numbers(pipe: Any) -> None:
    frames = run(pipe, PROMPT, num_frames=np.int64(1), guidance_scale=np.float32(4.0))
    assert np.array_equal(frames, run(pipe, PROMPT, num_frames=1))


def test_an_argument_that_does_not_exist_is_a_type_error(pipe: Any) -> None:
    with pytest.raises(TypeError, match="num_frame"):
        pipe(PROMPT, num_frame=9)


def test_unknown_words_are_named_with_the_vocabulary(pipe: Any) -> None:
    with pytest.warns(AccelWarning) as caught:
        run(pipe, "a red FOX jumps, left on a grey background", "a &amp; fox", num_frames=1)
    (warning,) = caught
    line = str(warning.message)
    assert line.startswith('the demo does not know "fox", "jumps", ",", "grey", "&"; it knows colours: red, ')
    assert describe_vocabulary(pipe.tokenizer) in line
    assert "\n" not in line
    assert warning.filename == __file__


def test_words_of_a_negative_prompt_that_is_not_used_are_not_named(pipe: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(pipe, PROMPT, "blurry", guidance_scale=1.0, num_frames=1)


def test_words_beyond_the_length_are_named(pipe: Any) -> None:
    long = f"{PROMPT} {PROMPT} {PROMPT}"
    with pytest.warns(AccelWarning, match='reads 23 words of a prompt; "moving left on a plain black background" is'):
        frames = run(pipe, long, num_frames=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = run(pipe, " ".join(long.split()[:23]), num_frames=1)
    assert np.array_equal(frames, short)


def test_every_training_caption_is_known_and_fits(pipe: Any) -> None:
    rng = Random(0)
    captions = [Scene.random(rng).caption() for _ in range(300)]
    captions += [Scene.random(rng).paraphrase(rng) for _ in range(300)]
    assert [unknown_words(caption, pipe.tokenizer) for caption in captions] == [[]] * len(captions)
    assert max(len(caption.split()) for caption in captions) <= demo.defaults()["max_sequence_length"] - 1


def test_unknown_words_are_those_that_the_tokenizer_maps_to_unknown(pipe: Any) -> None:
    text = "the quick brown fox: Red-ish, RED and ｒｅｄ (on white) fox"
    unknown = unknown_words(text, pipe.tokenizer)
    assert unknown == ["quick", "fox", ":", "-", "ish", ",", "and", "(", ")"]
    ids = pipe.tokenizer(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
    assert ids.count(pipe.tokenizer.unk_token_id) == len(unknown) + 1  # fox stands there twice


def test_the_vocabulary_is_described_whole(pipe: Any) -> None:
    line = describe_vocabulary(pipe.tokenizer)
    groups = dict(group.split(": ") for group in line.split("; "))
    assert list(groups) == [*GROUPS, "other words"]
    assert groups["shapes"] == "circle, square, triangle, ring"
    described = [word for group in groups.values() for word in group.split(", ")]
    assert sorted(described) == sorted(set(pipe.tokenizer.get_vocab()) - set(pipe.tokenizer.all_special_tokens))


def test_reading_the_vocabulary_leaves_the_tokenizer_as_it_was(pipe: Any) -> None:
    before = pipe.tokenizer.backend_tokenizer.to_str()
    unknown_words("a fox " * 40, pipe.tokenizer)
    describe_vocabulary(pipe.tokenizer)
    assert pipe.tokenizer.backend_tokenizer.to_str() == before
