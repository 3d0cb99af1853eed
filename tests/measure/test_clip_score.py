"""CLIP score with a tiny random CLIP on disk, against the cosine worked out by hand; nothing comes from a network."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from accel.errors import AccelError
from accel.measure.clip_score import ClipScore
from tests.tiny.text import clip_tokenizer

SIDE, LONGEST = 16, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer(LONGEST)
    width = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=LONGEST, **width, **ends)
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=8, **width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=4)
        CLIPModel(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    sides = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=sides).save_pretrained(place)
    return place


def clip(frames=3):
    return np.random.default_rng(0).random((frames, SIDE, SIDE, 3))


def by_hand(folder, frames, prompt):
    """100 max(cos, 0) of each frame, from the two towers."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), clip_tokenizer(LONGEST)
    processor = CLIPImageProcessor.from_pretrained(folder)
    pictures = [Image.fromarray((frame * 255 + 0.5).astype(np.uint8)) for frame in frames]
    with torch.no_grad():
        seen = model.vision_model(**processor(pictures, return_tensors="pt")).pooler_output
        read = model.text_model(**tokenizer([prompt], return_tensors="pt")).pooler_output
        seen, read = model.visual_projection(seen), model.text_projection(read)
    return 100 * torch.cosine_similarity(seen, read).clamp(min=0)


PROMPTS = ("a red fox", "two cats", "blue sky", "snow", "a dog runs")


def test_the_mean_cosine_of_the_frames(folder):
    measure, frames = ClipScore(folder), clip()
    expected = {prompt: by_hand(folder, frames, prompt) for prompt in PROMPTS}
    # A random CLIP puts about half of all prompts opposite to the pictures, which counts as nothing.
    assert any(values.max() > 0 for values in expected.values())
    for prompt, values in expected.items():
        assert measure(frames, prompt) == pytest.approx(values.mean().item(), rel=1e-4, abs=1e-3)
    assert len({round(measure(frames, prompt), 3) for prompt in PROMPTS}) > 1


def test_eight_frames_of_a_long_clip_are_looked_at(folder):
    frames = clip(15)
    measure = ClipScore(folder)
    prompt = max(PROMPTS, key=lambda prompt: measure(frames, prompt))
    assert (
        measure(frames, prompt) == pytest.approx(measure(frames[::2], prompt), rel=1e-6) != measure(frames[:8], prompt)
    )
    assert measure(frames[0], prompt) == measure(frames[:1], prompt)


def test_a_long_prompt_is_cut(folder):
    measure = ClipScore(folder)
    long = "abcdefgh " * 40
    assert measure(clip(), long) == measure(clip(), long + "and so on")


def refusal(folder):
    with pytest.raises(AccelError) as caught:
        ClipScore(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_name_that_is_no_folder_is_not_looked_up_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "openai/clip-vit-base-patch32 has no config.json" in refusal("openai/clip-vit-base-patch32")


@pytest.mark.parametrize("missing", ["model.safetensors", "preprocessor_config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused(folder, tmp_path, missing):
    kept = [file for file in folder.iterdir() if file.name != missing]
    assert len(kept) == len(list(folder.iterdir())) - 1
    for file in kept:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert "does not hold a whole CLIP" in refusal(tmp_path)


def test_a_folder_with_half_a_model_is_refused(folder, tmp_path):
    """transformers would fill up the other half with random numbers."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    half = {name: value for name, value in load_file(folder / "model.safetensors").items() if "vision" not in name}
    save_file(half, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "weights are missing, as vision_model." in refusal(tmp_path)
