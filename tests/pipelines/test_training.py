"""How the built-in model is made: what training sees, that it goes on where it was cut, that the parts fit."""

import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from accel.pipelines.demo.held_out import held_out, is_held_out, training_scene
from accel.pipelines.demo.render import render
from accel.pipelines.demo.scenes import ATTRIBUTES, COLORS, Scene
from accel.pipelines.demo.training import attention, autoencoder, evaluate, latents, loop, statistics, transformer
from accel.pipelines.demo.training.assemble import assemble
from accel.pipelines.demo.training.muon import Muon, orthogonalize
from accel.pipelines.demo.training.text import CAPTION_LENGTH, UNKNOWN, build_tokenizer, embed, training_caption


def test_held_out_scenes_are_balanced_and_never_trained_on() -> None:
    scenes = held_out()
    assert len(set(scenes)) == 64
    assert len({(s.shape, s.color, s.motion, s.background) for s in scenes}) == 64
    for name, words in ATTRIBUTES.items():
        counts = Counter(getattr(scene, name) for scene in scenes)
        assert set(counts) == set(words)
        assert max(counts.values()) - min(counts.values()) <= 1

    rng = Random(0)
    trained = {training_scene(rng) for _ in range(20_000)}
    assert not any(is_held_out(scene) for scene in trained)
    for one, other in itertools.combinations(ATTRIBUTES, 2):
        pairs = {(getattr(scene, one), getattr(scene, other)) for scene in trained}
        assert len(pairs) == len(ATTRIBUTES[one]) * len(ATTRIBUTES[other])
    assert is_held_out(Scene(scenes[0].shape, scenes[0].color, scenes[0].motion, scenes[0].background, "striped"))


def test_windows_show_the_object() -> None:
    scene = Scene("circle", "red", "left", "black")
    generator = torch.Generator().manual_seed(2)
    clips = render([scene] * 6, 17, 128, 128, generator, window=(5, 48, 48))
    assert clips.shape == (6, 3, 5, 48, 48)
    red = torch.tensor(COLORS["red"]) * 2 - 1
    near = (clips - red[:, None, None, None]).abs().amax(1) < 0.15
    assert near[:, 2].flatten(1).any(1).all()
    with pytest.raises(ValueError, match="does not fit"):
        render([scene], 4, 64, 64, window=(5, 48, 48))


def test_captions_for_training_say_nothing_or_use_known_and_unknown_words() -> None:
    rng, tokenizer = Random(1), build_tokenizer()
    captions = [training_caption(Scene.random(rng), rng) for _ in range(2000)]
    empty = sum(not caption for caption in captions) / 2000
    unknown = sum(UNKNOWN in caption.split() for caption in captions) / 2000
    assert 0.07 < empty < 0.13 and 0.10 < unknown < 0.17
    lengths = [len(tokenizer(caption).input_ids) for caption in captions]
    assert max(lengths) <= CAPTION_LENGTH


@pytest.mark.parametrize("length", [24, 64, 512])
def test_training_attention_is_the_pipelines_at_any_text_length(length: int) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    trained = transformer.Trainee(4, tokenizer).eval()
    torch.nn.init.normal_(trained.transformer.proj_out.weight, std=0.1)
    plain = transformer.build(4).eval()
    plain.load_state_dict(trained.transformer.state_dict())
    text = tokenizer(["a red circle moving left"], padding="max_length", max_length=24, return_tensors="pt")
    embeddings = embed(trained.text_encoder, text.input_ids, text.attention_mask)
    sample, time = torch.randn(1, 4, 3, 8, 8), torch.tensor([700.0])
    padded = torch.cat([embeddings, embeddings.new_zeros(1, length - 24, embeddings.shape[2])], 1)
    with torch.no_grad():
        expected = plain(sample, time, padded, return_dict=False)[0]
        trained.text_length.set(text.attention_mask, torch.tensor([length]))
        found = trained.transformer(sample, time, embeddings, return_dict=False)[0]
        trained.text_length.set(text.attention_mask, torch.tensor([1000]))
        other = trained.transformer(sample, time, embeddings, return_dict=False)[0]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (other - expected).abs().max() > 1e-3 * expected.abs().max()


def test_long_sequences_take_fused_attention_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = transformer.build(4).eval()
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    attention.install(model)
    inputs = torch.randn(1, 4, 3, 8, 8), torch.tensor([700.0]), torch.randn(1, 24, 128)
    with torch.no_grad():
        explicit = model(*inputs, return_dict=False)[0]
        monkeypatch.setattr(attention, "_FUSED_FROM", 1)
        fused = model(*inputs, return_dict=False)[0]
    assert torch.allclose(explicit, fused, atol=1e-5)


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 32, 80), (2, 80, 32)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)).float())
        assert values.min() > 0.5 and values.max() < 1.4


def test_muon_learns_a_matrix() -> None:
    torch.manual_seed(0)
    target, weight = torch.randn(8, 12), torch.nn.Parameter(torch.zeros(8, 12))
    optimizer = Muon([weight], lr=0.05)
    before = (weight - target).square().mean().item()
    for _ in range(100):
        optimizer.zero_grad()
        (weight - target).square().mean().backward()
        optimizer.step()
    assert (weight - target).square().mean() < 0.05 * before


def test_averages_swap_and_come_back() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    average = loop.Average([weight], decay=0.5)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update(100)
    average.swap()
    assert torch.equal(weight, torch.full((3,), 0.5))
    average.swap()
    assert torch.equal(weight, torch.ones(3))


def test_the_rate_warms_up_stays_and_decays() -> None:
    rates = [loop.learning_rate(step, 1000, warmup=100) for step in range(1000)]
    assert rates[0] == 0.01 and rates[99:700] == [1.0] * 601
    assert all(b < a for a, b in itertools.pairwise(rates[700:])) and 0 < rates[-1] < 0.01


def test_tiles_and_mass() -> None:
    order = statistics.tile_order((6, 8, 8))
    assert sorted(order.tolist()) == list(range(6 * 64))
    first = {(int(i) // 64, int(i) % 64 // 8, int(i) % 8) for i in order[:64]}
    assert first == set(itertools.product(range(4), range(4), range(4)))
    one_block = torch.zeros(1, 256, 256)
    one_block[:, :, 70] = 1.0
    assert statistics.blocks_for_mass(one_block, torch.arange(256)).item() == 0.25
    even = torch.full((1, 256, 256), 1 / 256)
    assert statistics.blocks_for_mass(even, torch.arange(256)).item() == 1.0


def test_fake_quantization() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64)
    assert torch.equal(
        statistics.fake_fp4(torch.tensor([[6.0, 3.1, -0.6, 0.2] * 4])), torch.tensor([[6.0, 3, -0.5, 0] * 4])
    )
    assert (statistics.fake_int8(x) - x).norm() / x.norm() < 0.01
    assert 0.05 < (statistics.fake_fp4(x) - x).norm() / x.norm() < 0.2


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with an untrained autoencoder and one shard of latents."""
    torch.manual_seed(0)
    vae = autoencoder.build(4).eval()
    vae.save_pretrained(tmp_path / "vae")
    size = latents.ClipSize.parse("32x32x5")
    latents.make_shard(vae, size, 0, 3, tmp_path / "latents" / str(size) / "00000.pt")
    return tmp_path


def train(work: Path, monkeypatch: pytest.MonkeyPatch, name: str, *more: str) -> None:
    arguments = ["32x32x5:1:1.5", "--name", name, "--work", str(work), "--steps", "4", "--tokens", "48", *more]
    monkeypatch.setattr(sys, "argv", ["transformer", *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    transformer.main()


def test_a_training_that_is_cut_goes_on_as_if_it_had_not_been(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(work, monkeypatch, "whole")
    steps = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(loop.Cut, "__bool__", lambda _: next(steps))
        train(work, patch, "cut")
    assert torch.load(work / "cut.pt", weights_only=True)["step"] == 2
    train(work, monkeypatch, "cut")
    whole, cut = (torch.load(work / f"{name}.pt", weights_only=True) for name in ("whole", "cut"))
    assert whole["step"] == cut["step"] == 4
    for name, value in whole["model"].items():
        assert torch.equal(value, cut["model"][name]), name
    assert all(torch.equal(a, b) for a, b in zip(whole["average"], cut["average"], strict=True))

    folder = work / "pipeline"
    size = assemble(work, "whole", 2.0, folder)
    assert size < 25e6 and max(path.stat().st_size for path in folder.rglob("*.safetensors")) < 15e6
    assert json.loads((folder / "model_index.json").read_text())["tokenizer"][1] == "PreTrainedTokenizerFast"
    pipe = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 3, "max_sequence_length": 24}
    frames = pipe("a red circle moving left", output_type="np", **call).frames[0]
    assert frames.shape == (5, 32, 32, 3) and np.isfinite(frames).all()

    scenes = {number: held_out()[number] for number in (0, 5)}
    alone = loop.Workers(0, 1, torch.device("cpu"))
    clips = evaluate.generate(pipe, scenes, call, 2, work / "clips", alone)
    assert [clip.shape for clip in clips] == [(5, 32, 32, 3)] * 2 and not np.array_equal(*clips)
    known = evaluate.generate(None, scenes, call, 2, work / "clips", alone)  # type: ignore[arg-type]
    assert all(np.array_equal(a, b) for a, b in zip(clips, known, strict=True))

    figures = statistics.observe(pipe, {**call, "guidance_scale": 2.0}, measure=2)
    assert set(figures) >= {"LSE, mean absolute change a step", "correlation of block change and error in FP4"}
    assert all(np.isfinite(value) for figure in figures.values() for value in figure.values())


def test_latents_are_the_same_for_the_same_number(work: Path) -> None:
    size = latents.ClipSize.parse("32x32x5")
    vae = autoencoder.AutoencoderKLWan.from_pretrained(work / "vae").eval()
    again = work / "again.pt"
    latents.make_shard(vae, size, 0, 3, again)
    first, second = (torch.load(p, weights_only=True) for p in (work / "latents/32x32x5/00000.pt", again))
    assert torch.equal(first["latents"], second["latents"]) and first["scenes"] == second["scenes"]
    assert first["latents"].shape == (64, 4, 3, 4, 4) and size.tokens == 12
    with pytest.raises(SystemExit, match="no latents of 64x64x9"):
        latents.load(work / "latents", latents.ClipSize.parse("64x64x9"), torch.device("cpu"))


def test_the_autoencoders_training_reduces_its_error() -> None:
    torch.manual_seed(0)
    vae = autoencoder.build(4)
    rng, generator = Random(0), torch.Generator().manual_seed(0)
    clips = render([training_scene(rng) for _ in range(2)], 5, 64, 64, generator, window=(5, 32, 32))
    steppers = autoencoder.optimizers(vae)
    errors = []
    for _ in range(12):
        total, figures = autoencoder.loss(vae, clips)
        total.backward()
        for optimizer in steppers:
            optimizer.step()
            optimizer.zero_grad()
        errors.append(figures["mse"])
    assert min(errors[-3:]) < 0.6 * errors[0]
    with torch.no_grad():
        mean = vae.encode(clips).latent_dist.mode()
        assert torch.allclose(autoencoder.decode(vae, mean).clamp(-1, 1), vae.decode(mean).sample, atol=1e-5)
