"""A model that came with stored weights beside sessions, LoRAs, casting and offloading; and two transformers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import apply_layerwise_casting
from huggingface_hub import constants
from torch import nn

import accel
from accel.cli.prepare import _offload, check_offload
from accel.cli.request import Request
from accel.config import AccelConfig
from accel.errors import AccelError
from accel.methods.stored_linear import StoredLinear
from tests.conformance.snapshot import snapshot
from tests.integrations.stored import LINEARS, config, load, one_step, stored
from tests.methods.quantized import CASE, enable, last, run
from tests.pipelines.test_loading import hub_cache
from tests.tiny_pipelines import TINY, add_lora


@pytest.mark.parametrize("method", ["mixed", "nvfp4", "nvfp4-weight"])
def test_enable_takes_the_weights_as_they_came(saved: Path, original: Path, method: str, tmp_path: Path) -> None:
    pipe = load(saved)
    expected, before = one_step(pipe), snapshot(pipe)
    codes = {path: (module.codes, module.codes.clone()) for path, module in stored(pipe).items()}
    with enable(pipe, quantize=method) as session:
        result = run(pipe, num_inference_steps=2)
        pipe.transformer.save_pretrained(tmp_path)
    report = last(session)
    assert report["layers"] == {"nvfp4": LINEARS} and report["rotated"] == LINEARS
    assert report["left"] == {"loaded as they are": 6} and report["originals"] is None
    assert sum(report["calls"].values()) == LINEARS * 2 * 2
    assert snapshot(pipe) == before and torch.equal(one_step(pipe), expected)
    for path, module in stored(pipe).items():
        assert module.codes is codes[path][0] and torch.equal(*codes[path]), "not quantized again"
        assert not module.seen.any() and module.route.tolist() == [0, 0, -1]
    written = WanTransformer3DModel.from_pretrained(tmp_path)
    assert all(torch.equal(written.get_submodule(path).codes, kept) for path, (_, kept) in codes.items())
    if method == "mixed":
        other = load(original)
        with enable(other, quantize=method):
            assert torch.equal(run(other, num_inference_steps=2), result), "as if quantized by enable"


def test_settings_that_agree_with_what_is_stored(original: Path) -> None:
    lists = {"modules_to_not_convert": ["blocks.0", "*.to_k"], "modules_to_convert": ["proj_out"]}
    method = accel.Int8Config(**lists, keep_original=False)
    pipe: Any = accel.load_pipeline(original, quantize=method)
    pipe.set_progress_bar_config(disable=True)
    taken = set(stored(pipe))
    assert len(taken) == LINEARS - 10 - 2 * 3 + 1 and "proj_out" in taken
    with enable(pipe, quantize=method) as session:
        one_step(pipe)
    assert last(session)["calls"]["int8"] == 2 * len(taken)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantize": "int8"}, "came stored in NVFP4, and int8 has them in INT8: quantize='mixed' or 'nvfp4' or"),
        ({"quantize": accel.MixedPrecisionConfig(rotate=False)}, "they are rotated: leave rotate out"),
        (
            {"quantize": "mixed", "static_share": 0.1},
            "none was spared then: leave static_share out, or load the original model and say it in the",
        ),
        ({"quantize": "mixed", "modules_to_not_convert": ["blocks.1.ffn"]}, r"that of blocks\.1\.ffn\.net\.0\.proj is"),
        ({"quantize": "mixed", "modules_to_convert": ["proj_out"]}, "that of proj_out is not among them"),
        ({"quantize": "mixed", "modules_to_convert": ["proj_aut"]}, "names 'proj_aut', and no linear is there"),
    ],
)
def test_settings_that_ask_for_other_weights_are_refused(saved: Path, settings: dict[str, Any], message: str) -> None:
    pipe = load(saved)
    before = snapshot(pipe)
    with pytest.raises(AccelError, match=message) as refusal:
        enable(pipe, **settings)
    assert "\n" not in str(refusal.value)
    assert snapshot(pipe) == before


def test_load_pipeline_refuses_what_is_not_there(original: Path, saved: Path) -> None:
    with pytest.raises(AccelError, match="are stored already, in NVFP4: leave quantize out"):
        accel.load_pipeline(saved, quantize="int8")
    with pytest.raises(AccelError, match="quantize has no method 'int4'"):
        accel.load_pipeline(original, quantize="int4")
    with pytest.raises(AccelError, match="give one of the two"):
        accel.load_pipeline(original, quantize="int8", quantization_config=config())
    with pytest.raises(AccelError, match="and transformer was loaded before: leave quantize out, and load transformer"):
        accel.load_pipeline(original, quantize="int8", transformer=CASE.build().transformer)
    assert len(stored(accel.load_pipeline(saved, quantize="mixed"))) == LINEARS
    assert len(stored(accel.load_pipeline(saved))) == LINEARS
    assert not stored(accel.load_pipeline(original, quantize="none"))


def test_a_model_of_the_hub_is_looked_at_where_it_is_loaded_from(
    original: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_cache(original, tmp_path)
    cache = hub_cache(saved, tmp_path, revision="v2", commit="f" * 40)
    load_from = partial(accel.load_pipeline, "org/name", cache_dir=cache, local_files_only=True)
    assert len(stored(load_from(quantize="int8"))) == LINEARS
    with pytest.raises(AccelError, match="are stored already, in NVFP4: leave quantize out"):
        load_from(revision="v2", quantize="int8")


def test_a_lora_on_top(saved: Path, tmp_path: Path) -> None:
    pipe = load(saved)
    without = one_step(pipe)
    add_lora(pipe)
    with_it = one_step(pipe)
    assert not torch.equal(with_it, without), "the adapter acts"
    for fuse in (lambda: pipe.fuse_lora(components=["transformer"]), pipe.transformer.fuse_lora):
        with pytest.raises(AccelError, match="stored quantized and cannot be changed"):
            fuse()
        assert torch.equal(one_step(pipe), with_it), "nothing half-done"
    with pytest.raises(AccelError, match="take off the adapter"):
        pipe.transformer.save_pretrained(tmp_path)
    with enable(pipe, quantize="nvfp4") as session:
        one_step(pipe)
        for fusion in ("fuse_lora", "fuse_qkv_projections"):
            with pytest.raises(AccelError, match=f"this model came stored: {fusion} needs the original model"):
                getattr(pipe.transformer, fusion)()
    assert last(session)["calls"]["nvfp4"] == LINEARS * 2, "the adapter's own linears stay as they are"
    pipe.transformer.unload_lora()
    assert torch.equal(one_step(pipe), without)


def test_scales_are_left_alone_by_casts(saved: Path) -> None:
    pipe = load(saved)
    before = {path: [part.clone() for part in module.stored] for path, module in stored(pipe).items()}
    with pytest.raises(ValueError, match="Casting a quantized model to a new `dtype` is unsupported"):
        pipe.transformer.to(torch.bfloat16)
    pipe.transformer.blocks.to(torch.bfloat16)
    assert all(module.weight_dtype == module.bias.dtype == torch.bfloat16 for module in stored(pipe).values())
    pipe.transformer.blocks.to(torch.float32)
    expected = one_step(pipe)
    # Norms and biases stay, so that only what casting does to stored weights could change the result.
    apply_layerwise_casting(
        pipe.transformer.blocks,
        storage_dtype=torch.bfloat16,
        compute_dtype=torch.float32,
        skip_modules_classes=(nn.LayerNorm, nn.RMSNorm),
    )
    for path, module in stored(pipe).items():
        assert "forward" in vars(module) and module.bias.dtype == torch.bfloat16
        for now, then in zip(module.stored, before[path], strict=True):
            assert now.dtype == then.dtype and torch.equal(now.float(), then.float())
    assert torch.equal(one_step(pipe), expected), "the biases had been through bfloat16 before"
    with enable(pipe, quantize="nvfp4") as session:
        one_step(pipe)
    assert last(session)["calls"]["nvfp4"] == LINEARS * 2


def test_offloading(saved: Path) -> None:
    pipe = load(saved)
    with enable(pipe, quantize="nvfp4"):
        expected = one_step(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    with enable(pipe, quantize="nvfp4") as session:
        assert torch.equal(one_step(pipe), expected)
    pipe.remove_all_hooks()
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )
    with enable(pipe, quantize="nvfp4") as session:
        assert torch.equal(one_step(pipe), expected)
    assert last(session)["calls"]["nvfp4"] == LINEARS * 2


def test_offloading_by_the_command_line(original: Path, saved: Path) -> None:
    """In groups what came stored alone, and without a stream, with which it would stay on the GPU."""
    asked, method = Request("x", 0, str(saved), cpu_offload="group"), AccelConfig(quantize="nvfp4")
    check_offload(asked, [method])
    check_offload(replace(asked, model=str(original)), [AccelConfig(cache="delta")])
    for other in (str(original), "demo"):
        with pytest.raises(AccelError, match="nvfp4: --cpu-offload group takes hold of the weights before"):
            check_offload(replace(asked, model=other), [AccelConfig(), method])
    streams: list[bool] = []
    for folder in (saved, original):
        pipe = load(folder)
        pipe.enable_group_offload = lambda *args, use_stream, **kwargs: streams.append(use_stream)
        _offload(pipe, "group", "cuda")
    assert streams == [False, True]


def test_two_transformers(tmp_path: Path) -> None:
    case = TINY["wan22"]
    case.build().save_pretrained(tmp_path / "original")
    pipe: Any = accel.load_pipeline(tmp_path / "original", quantize="nvfp4")
    pipe.save_pretrained(tmp_path / "stored")
    again: Any = accel.load_pipeline(tmp_path / "stored", quantize="nvfp4")
    both = [again.transformer, again.transformer_2]
    assert [sum(isinstance(m, StoredLinear) for m in model.modules()) for model in both] == [LINEARS, LINEARS]
    again.set_progress_bar_config(disable=True)
    with enable(again, quantize="nvfp4") as session:
        case.run(again, num_inference_steps=2)
    assert last(session)["calls"]["nvfp4"] == 2 * 2 * LINEARS and last(session)["layers"] == {"nvfp4": 2 * LINEARS}
    # One that came stored beside one that did not, which is converted and given back.
    again.transformer_2 = WanTransformer3DModel.from_pretrained(tmp_path / "original" / "transformer_2")
    expected = case.run(again, num_inference_steps=2)
    before = snapshot(again)
    with enable(again, quantize="nvfp4") as session:
        case.run(again, num_inference_steps=2)
    assert last(session)["layers"] == {"nvfp4": 2 * LINEARS}
    assert snapshot(again).modules == before.modules
    assert torch.equal(case.run(again, num_inference_steps=2), expected)
    assert not any(isinstance(m, StoredLinear) for m in again.transformer_2.modules())


@pytest.mark.parametrize("name", ["flux", "cogvideox"])
def test_modulation_of_other_families(name: str, tmp_path: Path) -> None:
    case = TINY[name]
    case.build().save_pretrained(tmp_path)
    method = accel.Int8Config(quantize_modulation=True)
    pipe: Any = accel.load_pipeline(tmp_path, quantize=method)
    pipe.set_progress_bar_config(disable=True)
    kinds = {module.weight_format for module in stored(pipe).values()}
    with enable(pipe, quantize=method) as session:
        case.run(pipe, num_inference_steps=1)
    report = last(session)
    other = case.build()
    with enable(other, quantize=method) as session:
        case.run(other, num_inference_steps=1)
    assert kinds == {"int8", "nvfp4"} == set(report["layers"])
    for figure in ("layers", "calls", "rotated", "unrotated", "weight_bytes"):
        assert report[figure] == last(session)[figure], figure


def test_a_calibration_holds_for_these_weights_only(saved: Path) -> None:
    from accel.methods.fingerprint import fingerprint
    from accel.pipelines.sites import inspect_pipeline

    pipe = load(saved)
    one = fingerprint("mixed", inspect_pipeline(pipe).denoisers)
    assert one == fingerprint("mixed", inspect_pipeline(load(saved)).denoisers)
    pipe.transformer.blocks[0].attn1.to_q.codes.add_(1)
    assert one != fingerprint("mixed", inspect_pipeline(pipe).denoisers)
