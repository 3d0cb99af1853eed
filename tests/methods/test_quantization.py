"""Quantizations on pipelines: which linears are taken, what is said, what others do to the pipeline meanwhile."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import accel
from accel.errors import AccelError, AccelWarning
from accel.kernels.nvfp4 import dequantize_nvfp4, quantize_nvfp4
from accel.methods.converted_linear import ConvertedLinear
from accel.methods.quantized_linear import QuantizedLinear
from tests.conformance.snapshot import snapshot
from tests.methods.quantized import CASE, STEPS, enable, last, run
from tests.tiny import video
from tests.tiny_pipelines import TINY, add_lora, save_locally

LINEARS = 40  # Ten in each of four blocks: eight of the two attentions, two of the feed-forward.
CALLS = LINEARS * STEPS * 2


def quantized_paths(pipe: Any) -> set[str]:
    return {path for path, module in pipe.transformer.named_modules() if isinstance(module, QuantizedLinear)}


@pytest.mark.parametrize(
    ("method", "ran", "bits", "said"),
    [
        ("int8", "int8", 8.0, "under 512 channels, too few to gain time on a CPU"),
        ("nvfp4", "nvfp4", 4.0, "NVFP4 activations are emulated on cpu"),
        ("nvfp4-weight", "plain", 16.0, "NVFP4 weights are decoded in each product on cpu"),
    ],
)
def test_fixed_formats(method: str, ran: str, bits: float, said: str) -> None:
    pipe = CASE.build()
    plain = run(pipe)
    with pytest.warns(AccelWarning, match=f"{method}: .*{said}"):
        session = accel.enable(pipe, quantize=method)
    with session:
        result = run(pipe)
    report = last(session)
    assert report["calls"] == {"plain": 0, "int8": 0, "nvfp4": 0} | {ran: CALLS}
    assert report["calls_by_step"] == {ran: [LINEARS * 2] * STEPS}
    assert report["average_bits"] == report["average_bits_with_skipped"] == bits
    assert report["layers"] == {"int8" if method == "int8" else "nvfp4": LINEARS}
    assert report["left"] == {"named in modules_to_not_convert": 6}
    assert said in str(session.summary())
    assert 0 < (result - plain).norm() / plain.norm() < 0.3
    assert torch.equal(run(pipe), plain)


def test_bytes_before_and_after_are_those_of_the_layers() -> None:
    pipe = CASE.build()
    weights = [p for n, p in pipe.transformer.blocks.named_parameters() if p.ndim == 2]
    with enable(pipe, quantize="nvfp4") as session:
        run(pipe, num_inference_steps=1)
        linears = [module for module in pipe.transformer.modules() if isinstance(module, QuantizedLinear)]
        held = sum(tensor.nbytes for module in linears for tensor in (*module.buffers(), module.activation_scale))
        assert not [n for n, p in pipe.transformer.blocks.named_parameters() if p.ndim == 2]
    report = last(session)
    assert report["weight_bytes_before"] == sum(weight.nbytes for weight in weights)
    assert report["weight_bytes"] == held == sum(w.numel() * 9 // 16 + 8 for w in weights)
    # The decoded weight, of which the largest here is a single piece.
    assert report["scratch_bytes"] == 4 * 128 * 256
    assert report["originals"] == "in host memory" and "originals in host memory" in str(session.summary())


def test_samples_in_a_list_tell_where_it_runs() -> None:
    """Without that neither the form of the operations is known nor the device whose formats count."""
    case = TINY["z_image"]
    pipe = case.build()
    with enable(pipe, quantize="nvfp4-weight") as session:
        case.run(pipe, num_inference_steps=1)
    assert last(session)["scratch_bytes"] > 0


def test_the_users_list_adds_to_the_familys_and_another_overrides_it() -> None:
    pipe = CASE.build()
    all_linears = {n for n, m in pipe.transformer.named_modules() if isinstance(m, nn.Linear)}
    with enable(pipe, quantize="int8", modules_to_not_convert=["blocks.0", "*.to_k"], modules_to_convert=["proj_out"]):
        taken = quantized_paths(pipe)
    assert "proj_out" in taken and not any(path.startswith("condition_embedder") for path in taken)
    assert taken == {p for p in all_linears if p.startswith("blocks.") and "blocks.0" not in p and "to_k" not in p} | {
        "proj_out"
    }
    with enable(pipe, quantize="int8", modules_to_convert=["proj_out"]) as session:
        run(pipe, num_inference_steps=1)
    assert last(session)["calls"]["int8"] == (LINEARS + 1) * 2, "a layer outside the blocks is counted too"


def test_modulation_is_stored_in_four_bits_where_that_is_asked() -> None:
    case = TINY["flux"]
    pipe = case.build()
    with enable(pipe, quantize="int8") as session:
        case.run(pipe, num_inference_steps=1)
    without = last(session)
    assert without["left"]["modulation (quantize_modulation=True takes them)"] == 9
    with enable(pipe, quantize="int8", quantize_modulation=True) as session:
        case.run(pipe, num_inference_steps=1)
    report = last(session)
    assert report["layers"]["nvfp4"] == 9 and report["calls"]["plain"] == 9
    assert report["calls"]["int8"] == without["calls"]["int8"]


@pytest.mark.parametrize(("static_format", "layers"), [("int8", {"nvfp4": 36, "int8": 4}), ("16bit", {"nvfp4": 36})])
def test_the_most_sensitive_are_spared(static_format: str, layers: dict[str, int]) -> None:
    pipe = CASE.build()
    errors = {}
    for path, module in pipe.transformer.blocks.named_modules(prefix="blocks"):
        if isinstance(module, nn.Linear):
            rounded = dequantize_nvfp4(*quantize_nvfp4(module.weight.detach(), by_error=True))
            errors[path] = ((module.weight - rounded).norm() / module.weight.norm()).item()
    worst = sorted(errors, key=errors.__getitem__)[-4:]
    with enable(pipe, quantize="nvfp4", static_share=0.1, static_format=static_format) as session:
        run(pipe, num_inference_steps=1)
        formats = {path: getattr(pipe.transformer.get_submodule(path), "weight_format", None) for path in errors}
    report = last(session)
    assert report["layers"] == layers
    assert report["calls"]["nvfp4"] == 36 * 2 and report["calls"]["int8"] == 2 * layers.get("int8", 0)
    assert {path for path, found in formats.items() if found != "nvfp4"} == set(worst)


@pytest.mark.parametrize("came", ["as it is", "stored"])
def test_layers_that_cannot_be_rotated_are_counted(monkeypatch: pytest.MonkeyPatch, came: str, tmp_path: Path) -> None:
    monkeypatch.setitem(video.WAN_SHAPE, "ffn_dim", 208)
    pipe: Any = CASE.build()
    if came == "stored":
        pipe.save_pretrained(tmp_path)
        pipe = accel.load_pipeline(tmp_path, quantize="int8")
        pipe.set_progress_bar_config(disable=True)
    with enable(pipe, quantize="int8") as session:
        run(pipe, num_inference_steps=1)
    report = last(session)
    assert (report["rotated"], report["unrotated"]) == (36, 4)
    assert "4 unrotated" in str(session.summary())


def test_layers_that_no_group_divides_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(video.WAN_SHAPE, "ffn_dim", 200)
    pipe = CASE.build()
    with enable(pipe, quantize="nvfp4") as session:
        assert len(quantized_paths(pipe)) == 36
        run(pipe, num_inference_steps=1)
    assert last(session)["calls"]["nvfp4"] == 36 * 2
    assert 4 in last(session)["left"].values()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_not_convert": ["*.to_w"]}, "names '\\*.to_w', and no linear is there"),
        ({"modules_to_not_convert": ["blocks"]}, r"no linear is left to quantize \(46 named in modules_to"),
        ({"keep_original": False}, "was loaded from none with safetensors"),
        ({"rotated": True}, "no active method has a setting 'rotated' .nearest: 'rotate'."),
        ({"modules_to_not_convert": "blocks.0"}, "is not possible"),
    ],
)
def test_refusals_change_nothing(settings: dict[str, Any], message: str) -> None:
    pipe = CASE.build()
    run(pipe, num_inference_steps=1)
    before = snapshot(pipe)
    with pytest.raises(AccelError, match=message):
        enable(pipe, quantize="int8", **settings)
    assert snapshot(pipe) == before


@pytest.mark.parametrize("method", ["int8", "nvfp4"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(method: str, value: float) -> None:
    pipe = CASE.build()
    pipe.transformer.blocks[2].ffn.net[2].weight.data[3, 4] = value
    before = snapshot(pipe)
    with pytest.raises(AccelError, match=r"the weight of transformer\.blocks\.2\.ffn\.net\.2 has values that are not"):
        enable(pipe, quantize=method)
    assert snapshot(pipe) == before


def test_activations_that_are_not_finite_are_told_by_name() -> None:
    pipe = CASE.build()
    session = enable(pipe, quantize="int8")
    layer = pipe.transformer.blocks[3].attn1.to_out[0]
    handle = layer.register_forward_pre_hook(lambda _, args: (args[0] * torch.nan,))
    said = r"int8: activations of transformer\.blocks\.3\.attn1\.to_out\.0 and 4 other layers were not finite"
    with pytest.warns(AccelWarning, match=said):
        run(pipe, num_inference_steps=2)
    handle.remove()
    run(pipe, num_inference_steps=1)
    session.disable()
    texts = [" ".join(record["notes"]) for record in session.summary().to_dict()["runs"]]
    assert "transformer.blocks.3.attn1.to_out.0" in texts[0] and "not finite" not in texts[1]


def test_a_warning_at_the_end_of_a_run_that_is_made_an_error_leaves_no_run_open() -> None:
    pipe = CASE.build()
    session = enable(pipe, quantize="int8", cache="delta")
    handle = pipe.transformer.blocks[3].ffn.register_forward_pre_hook(lambda _, args: (args[0] * torch.nan,))
    with pytest.raises(AccelWarning, match="were not finite"):
        run(pipe, num_inference_steps=2)
    handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccelWarning)
        run(pipe, num_inference_steps=1)
    session.disable()
    broken, sound = session.summary().to_dict()["runs"]
    assert broken["state"] == sound["state"] == "finished" and broken["methods"]["int8"]["calls"]["int8"] > 0
    assert "not finite" in " ".join(broken["notes"]) and "not finite" not in " ".join(sound["notes"])


def test_fusing_is_refused_and_a_loaded_adapter_is_not() -> None:
    pipe = CASE.build()
    plain = run(pipe)
    session = enable(pipe, quantize="int8")
    without = run(pipe)
    add_lora(pipe)
    assert not torch.equal(run(pipe), without), "the adapter acts"
    assert last(session)["calls"]["int8"] == CALLS, "the adapter's own linears stay as they are"
    for fusion in ("fuse_lora", "fuse_qkv_projections"):
        with pytest.raises(AccelError, match=f"{fusion} changes weights, and those of this model are stored by int8"):
            getattr(pipe.transformer, fusion)()
    with pytest.raises(AccelError, match="fuse_lora changes weights"):
        pipe.fuse_lora(components=["transformer"])
    pipe.transformer.unload_lora()
    assert torch.equal(run(pipe), without)
    session.disable()
    assert torch.equal(run(pipe), plain)
    assert "fuse_lora" not in vars(pipe.transformer)


def test_a_warning_that_is_made_an_error_leaves_nothing_behind() -> None:
    pipe = CASE.build()
    before = snapshot(pipe)
    with pytest.raises(AccelWarning, match="emulated"):
        accel.enable(pipe, quantize="nvfp4")
    assert snapshot(pipe) == before
    assert not quantized_paths(pipe)


def test_leaf_hooks_that_stand_already_are_refused() -> None:
    pipe = CASE.build()
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    said = r"has a forward of offloading or casting of single layers: call accel\.enable first"
    with pytest.raises(AccelError, match=said):
        enable(pipe, quantize="int8")


def test_an_enabled_pipeline_saves_the_original_weights(tmp_path: Any) -> None:
    pipe = CASE.build()
    plain = run(pipe)
    with enable(pipe, quantize="nvfp4"):
        pipe.save_pretrained(tmp_path)
    assert torch.equal(run(save_locally(CASE.build(), tmp_path / "again")), plain)
    loaded = type(pipe).from_pretrained(tmp_path, local_files_only=True)
    for mine, theirs in zip(pipe.transformer.parameters(), loaded.transformer.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_originals_that_are_not_kept_are_read_again(tmp_path: Any) -> None:
    pipe = save_locally(CASE.build(), tmp_path)
    plain = run(pipe)
    with enable(pipe, quantize="int8", keep_original=False) as session:
        quantized = run(pipe)
        told = f"read again from {tmp_path / 'transformer'} at disable"
        assert last(session)["originals"] == told and f"originals {told}" in str(session.summary())
        layer = pipe.transformer.blocks[0].attn1.to_q
        assert isinstance(layer, ConvertedLinear) and not layer.original.kept
        with pytest.raises(AccelError, match="cannot be saved"):
            pipe.transformer.state_dict()
    assert torch.equal(run(pipe), plain)
    with enable(pipe, quantize="int8"):
        assert torch.equal(run(pipe), quantized)
    with torch.no_grad():
        pipe.transformer.blocks[1].attn1.to_q.weight += 1
    before = snapshot(pipe)
    with pytest.raises(AccelError, match=r"does not have those of transformer\.blocks\.1\.attn1\.to_q"):
        enable(pipe, quantize="int8", keep_original=False)
    assert snapshot(pipe) == before


def test_half_precision_comes_back_as_it_was() -> None:
    pipe = CASE.build().to(torch.bfloat16)
    plain = run(pipe)
    with enable(pipe, quantize="int8") as session:
        assert torch.isfinite(run(pipe)).all()
    assert last(session)["weight_bytes_before"] == 2 * sum(
        p.numel() for n, p in pipe.transformer.blocks.named_parameters() if p.ndim == 2
    )
    assert torch.equal(run(pipe), plain)
