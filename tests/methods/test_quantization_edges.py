"""What can go wrong around a quantization: an undo that fails, weights held in strange ways, copies, casts, modes."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import accel
from accel.errors import AccelError, AccelWarning
from accel.kernels.quantized_linear import stored_weight
from accel.measure.calibration import calibrate_mixed
from accel.methods import converted_linear
from accel.methods.converted_linear import ConvertedLinear, revert
from accel.methods.quantized_linear import hold, store
from accel.methods.stored_linear import StoredLinear
from tests.conformance.snapshot import snapshot
from tests.methods.quantized import CASE, enable, linear, quantized
from tests.tiny_pipelines import add_lora, save_locally

X = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in pipe.transformer.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_an_undo_that_fails_goes_on_when_it_can(tmp_path: Path) -> None:
    """The file of the dropped weights is away for a while: some layers were given back already."""
    pipe = save_locally(CASE.build(), tmp_path)
    before, parts = weights(pipe), snapshot(pipe)
    session = enable(pipe, quantize="int8", keep_original=False)
    file = next((tmp_path / "transformer").glob("*.safetensors"))
    os.rename(file, tmp_path / "away")
    with pytest.raises(AccelError, match=r"cannot be read from .* again"):
        session.disable()
    assert session.enabled
    os.rename(tmp_path / "away", file)
    accel.disable(pipe)
    assert not session.enabled and snapshot(pipe).modules == parts.modules
    assert same(weights(pipe), before)


def test_a_file_that_was_written_anew_gives_nothing_back(tmp_path: Path) -> None:
    pipe = save_locally(CASE.build(), tmp_path)
    session = enable(pipe, quantize="int8", keep_original=False)
    CASE.build(seed=1).save_pretrained(tmp_path)
    with pytest.raises(AccelError, match="the file was written anew since"):
        session.disable()


def test_a_dropped_weight_has_no_more_digits_than_the_model_had(tmp_path: Path) -> None:
    """The file is in float32, the model was loaded in bfloat16 and is in float32 by the end."""
    pipe = save_locally(CASE.build(), tmp_path).to(torch.bfloat16)
    twin = copy.deepcopy(pipe.transformer)
    with enable(pipe, quantize="int8", keep_original=False):
        pipe.to(torch.float32)
    assert same(weights(pipe), twin.to(torch.float32).state_dict())


@pytest.mark.parametrize("keep_original", [True, False])
def test_weights_that_two_modules_share_are_refused(tmp_path: Path, keep_original: bool) -> None:
    """The other module would find the weight in host memory, or gone."""
    pipe = save_locally(CASE.build(), tmp_path)
    attention = pipe.transformer.blocks[1].attn1
    attention.to_q.weight = attention.to_k.weight
    before, parts = weights(pipe), snapshot(pipe)
    said = r"transformer\.blocks\.1\.attn1\.to_q and transformer\.blocks\.1\.attn1\.to_k share one weight"
    with pytest.raises(AccelError, match=said):
        enable(pipe, quantize="int8", keep_original=keep_original)
    with pytest.raises(AccelError, match="name both in modules_to_not_convert"):
        enable(pipe, quantize="nvfp4", keep_original=keep_original, modules_to_not_convert=["*.to_k"])
    assert snapshot(pipe) == parts and same(weights(pipe), before)
    with enable(pipe, quantize="int8", modules_to_not_convert=["blocks.1.attn1.to_q", "blocks.1.attn1.to_k"]):
        assert attention.to_q.weight is attention.to_k.weight
    assert snapshot(pipe) == parts and same(weights(pipe), before)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_are_made_of_others_are_refused() -> None:
    pipe = CASE.build()
    nn.utils.weight_norm(pipe.transformer.blocks[2].attn1.to_q)
    said = r"the weight of transformer\.blocks\.2\.attn1\.to_q is made of others.* modules_to_not_convert"
    with pytest.raises(AccelError, match=said):
        enable(pipe, quantize="int8")


def test_weights_on_the_disk_are_not_taken_from_what_is_in_memory(tmp_path: Path) -> None:
    pipe = CASE.build()
    where = {"onload_device": torch.device("cpu"), "offload_to_disk_path": str(tmp_path)}
    pipe.transformer.enable_group_offload(offload_type="block_level", num_blocks_per_group=1, **where)
    with pytest.raises(AccelError, match=r"offloaded in groups on the disk.* call accel\.enable first"):
        enable(pipe, quantize="int8")
    with pytest.raises(AccelError, match=r"mixed: the weights of pipe\.transformer are offloaded"):
        calibrate_mixed(pipe, [])


def test_an_adapter_that_is_fused_stays_so_until_it_can_be_taken_out() -> None:
    pipe = CASE.build()
    add_lora(pipe)
    without = weights(pipe)
    pipe.fuse_lora(components=["transformer"])
    fused = weights(pipe)
    session = enable(pipe, quantize="int8")
    for unfuse in (lambda: pipe.unfuse_lora(components=["transformer"]), pipe.transformer.unfuse_lora):
        with pytest.raises(AccelError, match="unfuse_lora changes weights, and those of this model are stored by int8"):
            unfuse()
    layers = [m for m in pipe.transformer.modules() if isinstance(getattr(m, "base_layer", None), nn.Linear)]
    assert layers and all(layer.merged for layer in layers), "nothing half-done"
    session.disable()
    assert same(weights(pipe), fused) and not any("unmerge" in vars(layer) for layer in layers)
    pipe.unfuse_lora(components=["transformer"])
    after = weights(pipe)
    for name, value in without.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-5)


def test_a_copy_of_an_enabled_linear_that_came_stored_is_as_it_came() -> None:
    plain = linear()
    rest = hold(plain, StoredLinear, "nvfp4", store(plain.weight.detach(), "nvfp4", True), rotated=True, saved=True)
    expected = rest(X)
    rest.choose("nvfp4", look=1)
    rest.scale_activations(0.25)
    assert not torch.equal(rest(X), expected)
    twin = copy.deepcopy(rest)
    assert twin.route.tolist() == [0, 0, -1] and not twin.ran.any() and not twin.seen.any()
    assert twin.activation_scale == 4.0
    assert torch.equal(twin(X), expected)
    assert rest.route.tolist() == [1, 1, -1] and rest.activation_scale == 0.25
    assert rest.ran.tolist() == [1, 1, 0]


@pytest.mark.parametrize("failing", ["Original", "hold"])
def test_a_conversion_that_fails_leaves_the_linear(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """As where host memory has no room for the original."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    layer = linear()
    weight, attributes, bits = layer.weight, sorted(vars(layer)), layer.weight.clone()
    monkeypatch.setattr(converted_linear, failing, fail)
    with pytest.raises(MemoryError):
        quantized(layer, "nvfp4")
    assert type(layer) is nn.Linear and sorted(vars(layer)) == attributes
    assert layer.weight is weight and torch.equal(layer.weight, bits)


@pytest.mark.parametrize("strict", [True, False])
def test_weights_are_not_loaded_past_a_quantized_layer(strict: bool) -> None:
    model = nn.Sequential(linear())
    quantized(model[0], "int8")
    with pytest.raises(
        RuntimeError, match=r"0\.weight is stored quantized: call accel\.disable\(pipe\) and load it then"
    ):
        model.load_state_dict(nn.Sequential(linear()).state_dict(), strict=strict)
    # What has no weight of it is none of its business.
    model.load_state_dict({"0.bias": torch.zeros(128)}, strict=False)
    assert not model[0].bias.any()


@pytest.mark.parametrize("rotated", [False, True])
def test_the_weight_has_the_dtype_that_casting_gives_it(rotated: bool) -> None:
    module = quantized(linear(), "nvfp4", rotated=rotated)
    module.to(torch.float8_e4m3fn)
    assert module.weight.dtype == torch.float8_e4m3fn
    wide = stored_weight(module.stored, rotated, torch.float32)
    assert torch.equal(module.weight.float(), wide.to(torch.float8_e4m3fn).float())


def test_float16_holds_what_a_rotation_adds_up() -> None:
    """128 channels of 6,000 make 768,000, which float16 does not hold; the product does not need it."""
    layer = linear(bias=False, dtype=torch.float16)
    with torch.no_grad():
        layer.weight *= 1e-3
    x = torch.full((3, 256), 6000.0, dtype=torch.float16)
    x[1] = X[0].half()
    exact = layer.float()(x.float())
    module = quantized(layer.half(), "nvfp4", rotated=True)
    for activation in ("plain", "int8", "nvfp4"):
        module.choose(activation)  # type: ignore[arg-type]
        result = module(x)
        assert result.dtype == torch.float16 and result.isfinite().all(), activation
        if activation != "nvfp4":  # What is this large is cut there, and told.
            assert ((result[0].float() - exact[0]).norm() / exact[0].norm()).item() < 0.15, activation


@pytest.mark.parametrize("inside", ["made", "used"])
def test_inference_mode_on_one_side(inside: str) -> None:
    layer = linear()
    with torch.inference_mode(inside == "made"):
        module = quantized(layer, "nvfp4", rotated=True)
    with torch.inference_mode(inside == "used"):
        module.choose("nvfp4", look=1)
        module.scale_activations(2.0)
        module(X)
    assert module.ran.tolist() == [0, 1, 0]
    module.seen.zero_()
    with torch.inference_mode():
        revert(module)
    assert type(layer) is nn.Linear and torch.equal(layer.weight, linear().weight)


def test_what_is_foretold_is_of_the_device_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is offloaded lies on the CPU when it is enabled, and runs elsewhere."""
    pipe = CASE.build()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    pipe.transformer._hf_hook = SimpleNamespace(execution_device=torch.device("cuda", 0))
    accel.enable(pipe, quantize="nvfp4").disable()  # A warning would be an error.
    with pytest.warns(AccelWarning, match="NVFP4 weights are decoded in each product on sm_100"):
        accel.enable(pipe, quantize="nvfp4-weight").disable()
    del pipe.transformer._hf_hook
    with pytest.warns(AccelWarning, match="emulated on cpu"):
        accel.enable(pipe, quantize="nvfp4").disable()


def test_the_most_sensitive_are_told_by_what_they_lose_as_they_are_stored() -> None:
    """A weight with outlier channels loses little in NVFP4 once it is rotated."""
    pipe = CASE.build()
    errors = {}
    for path, module in pipe.transformer.named_modules():
        if type(module) is nn.Linear and path.startswith("blocks."):
            weight = module.weight.detach()
            if path == "blocks.0.attn1.to_q":
                with torch.no_grad():
                    # Of 128 channels, so that it is the worst one without a rotation.
                    module.weight.copy_(torch.where(torch.arange(128) % 16 < 2, 1.0, 0.12) * weight.sign())
            rounded = [
                stored_weight(store(module.weight.detach(), "nvfp4", r), r, torch.float32) for r in (False, True)
            ]
            errors[path] = [((module.weight - each).norm() / module.weight.norm()).item() for each in rounded]
    plainly, rotated = (max(errors, key=lambda path: errors[path][r]) for r in (0, 1))
    assert plainly != rotated
    with enable(pipe, quantize="mixed", static_share=1 / 40):
        found = [p for p, m in pipe.transformer.named_modules() if getattr(m, "weight_format", None) == "int8"]
        assert all(isinstance(pipe.transformer.get_submodule(path), ConvertedLinear) for path in found)
    assert found == [rotated]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("weight", ["int8", "nvfp4"])
def test_the_dtype_that_torch_makes_tensors_in_is_none_of_its_business(dtype: torch.dtype, weight: Any) -> None:
    module, twin = quantized(linear(), weight, rotated=True), linear()
    results = []
    activations: tuple[Any, ...] = ("plain", "int8") if weight == "int8" else ("plain", "int8", "nvfp4")
    for activation in activations:
        module.choose(activation)
        results.append(module(X))
    torch.set_default_dtype(dtype)
    try:
        again = quantized(twin, weight, rotated=True)
        for activation, expected in zip(activations, results, strict=True):
            again.choose(activation)
            assert torch.equal(again(X), expected), activation
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_tells_the_route_stays_on_the_host() -> None:
    """A script may have set the GPU as the device of all tensors that say none."""
    layer = linear()
    stored = store(layer.weight.detach(), "nvfp4", False)
    with torch.device("meta"):
        module = hold(layer, StoredLinear, "nvfp4", stored, rotated=False, saved=True)
        module.choose("nvfp4")
    assert {each.device.type for each in (module.route, module.ran, module.seen, module.activation_scale)} == {"cpu"}
    assert module.route.tolist() == [1, 0, -1]
    module.watch_on(torch.device("meta"))
    assert {each.device.type for each in (module.seen, module.activation_scale)} == {"meta"}
    assert {each.device.type for each in (module.route, module.ran)} == {"cpu"}
