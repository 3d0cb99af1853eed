"""Weights that are stored while they load: saved, read again, and read as garbage by nobody."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.quantizers import auto
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

import accel
from accel.errors import AccelError
from accel.integrations import StoredWeightsConfig, register
from accel.methods.quantized_linear import store
from accel.methods.weight_bytes import stored_bytes
from tests.integrations.stored import LINEARS, config, load, one_step, stored, tensors
from tests.methods.quantized import CASE, enable, last
from tests.repository.tree import ROOT

WEIGHTS = "diffusion_pytorch_model.safetensors"


def edited(folder: Path, to: Path, **changes: Any) -> Path:
    """A copy of a saved transformer whose `quantization_config` says something else."""
    shutil.copytree(folder / "transformer", to)
    written = json.loads((to / "config.json").read_text())
    written["quantization_config"].update(changes)
    (to / "config.json").write_text(json.dumps(written))
    return to


@pytest.mark.parametrize(("weights", "rotate"), [("nvfp4", False), ("nvfp4", True), ("int8", True)])
def test_each_weight_is_what_the_kernels_make_of_it(
    original: Path, weights: Any, rotate: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    # The command line, which other tests call in this process, turns bars off.
    logging.enable_progress_bar()
    pipe = load(original, config(weights=weights, rotate=rotate))
    assert f"Storing weights in {weights.upper()}: 100%" in capfd.readouterr().err
    before = load(original).transformer
    found = stored(pipe)
    assert len(found) == LINEARS and all(path.startswith("blocks.") for path in found)
    for path, module in found.items():
        plain = before.get_submodule(path)
        expected = store(plain.weight.detach(), weights, rotate)
        assert (module.weight_format, module.rotated) == (weights, rotate)
        held = (*module.buffers(), module.activation_scale)
        assert sum(tensor.nbytes for tensor in held) == stored_bytes(weights, *plain.weight.shape)
        for mine, theirs in zip(module.stored, expected, strict=True):
            assert mine.dtype == theirs.dtype and torch.equal(mine.float(), theirs.float())
        assert torch.equal(module.bias, plain.bias)


def test_what_was_saved_is_read_again(original: Path, saved: Path, tmp_path: Path) -> None:
    first, again = load(original, config()), load(saved)
    expected = one_step(first)
    plain = one_step(CASE.build())
    assert 0.01 < (expected - plain).norm() / plain.norm() < 0.3, "it generates, from rounded weights"
    assert torch.equal(one_step(again), expected)
    again.save_pretrained(tmp_path)
    assert (tmp_path / "transformer" / WEIGHTS).read_bytes() == (saved / "transformer" / WEIGHTS).read_bytes()
    written = load_file(saved / "transformer" / WEIGHTS)
    assert {value.dtype for value in written.values()} == {torch.float32, torch.uint8, torch.int32}
    assert not [name for name in written if name.endswith("to_q.weight")]
    described, kept = (
        json.loads((folder / "transformer" / "config.json").read_text())["quantization_config"]
        for folder in (saved, tmp_path)
    )
    assert described == kept
    assert described["quant_method"] == "dit-accel" and described["version"] == 1
    assert {kind: len(paths) for kind, paths in described["layers"].items()} == {"nvfp4-rotated": LINEARS}


def test_the_rest_has_the_dtypes_that_diffusers_gives_it(original: Path, saved: Path) -> None:
    plain = {n: p.dtype for n, p in load(original, dtype=torch.bfloat16).transformer.named_parameters()}
    assert {torch.bfloat16, torch.float32} == set(plain.values())
    for pipe in (load(original, config(), dtype=torch.bfloat16), load(saved, dtype=torch.bfloat16)):
        mine = {n: p.dtype for n, p in pipe.transformer.named_parameters()}
        assert mine == {n: dtype for n, dtype in plain.items() if n in mine}
        assert len(plain) - len(mine) == LINEARS
        assert all(module.weight_dtype == torch.bfloat16 for module in stored(pipe).values())
        assert one_step(pipe).isfinite().all()


PLAIN_DIFFUSERS = """
import sys
from diffusers import WanPipeline, WanTransformer3DModel
{before}
def attempt(folder):
    try:
        return WanTransformer3DModel.from_pretrained(folder)
    except ValueError as error:
        print("refused:", str(error)[:60])
attempt(sys.argv[1])
try:
    WanPipeline.from_pretrained(sys.argv[2])
except ValueError as error:
    print("refused:", str(error)[:60])
assert "accel.integrations" not in sys.modules
unmarked = attempt(sys.argv[3])
print("without numbers:", sum(p.is_meta for n, p in unmarked.named_parameters() if n.endswith(".weight")))
import accel.integrations
print("with Accel:", type(attempt(sys.argv[1])).__name__)
"""


def test_plain_diffusers_refuses_it(saved: Path, tmp_path: Path) -> None:
    unmarked = edited(saved, tmp_path / "unmarked")
    written = json.loads((unmarked / "config.json").read_text())
    del written["quantization_config"]
    (unmarked / "config.json").write_text(json.dumps(written))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PLAIN_DIFFUSERS.format(before="import accel"),
            *map(str, (saved / "transformer", saved, unmarked)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *["refused: Unknown quantization type, got dit-accel - supported types a"] * 2,
        # Somebody took the mark out of config.json: names differ too, so that no code is read as a weight.
        f"without numbers: {LINEARS}",
        "with Accel: WanTransformer3DModel",
    ]


def test_registration_touches_nobody_else() -> None:
    known = dict(auto.AUTO_QUANTIZER_MAPPING), dict(auto.AUTO_QUANTIZATION_CONFIG_MAPPING)
    register()
    assert known == (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING)
    ours = [name for name, found in known[0].items() if found.__module__.startswith("accel")]
    assert ours == ["dit-accel"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "int4"}, "weights='int4' is no format: there are 'int8' and 'nvfp4'"),
        ({"modules_to_not_convert": ["*.to_w"]}, r"names '\*\.to_w', and no linear is there"),
        ({"modules_to_convert": ["proj_aut"]}, "modules_to_convert names 'proj_aut', and no linear is there"),
        ({"modules_to_not_convert": ["blocks"]}, "leaves no linear to store"),
        ({"modules_to_not_convert": "blocks.0"}, r"is a list of paths or patterns"),
        ({"modules_to_convert": 3}, "modules_to_convert is a list of paths or patterns"),
        ({"static_share": "0.1"}, "static_share='0.1' is not possible: it is a fraction, from 0 to 1"),
        ({"static_share": None}, "static_share=None is not possible"),
        ({"rotate": "false"}, "rotate='false' is not possible: it is True or False"),
        ({"quantize_modulation": "no"}, "quantize_modulation='no' is not possible: it is True or False"),
        ({"quantize_modulation": None}, "quantize_modulation=None is not possible"),
        ({"rotated": True}, "no setting 'rotated' .nearest: 'rotate'."),
        ({"version": 2}, "by a newer Accel, in version 2, and this one reads version 1"),
        ({"quant_method": "torchao"}, "another quantizer's"),
    ],
)
def test_settings_that_are_refused(original: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AccelError, match=message) as refusal:
        WanTransformer3DModel.from_pretrained(original / "transformer", quantization_config=config(**settings))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2, "layers": {"fp2": []}}, "by a newer Accel, in version 2"),
        ({"layers": {"fp2": ["blocks.0.attn1.to_q"]}}, "stored in 'fp2', which this Accel does not read"),
        ({"layers": {"nvfp4": ["blocks.9.attn1.to_q"]}}, r"WanTransformer3DModel has no linear blocks\.9\.attn1\.to_q"),
        ({"layers": {"nvfp4": ["proj_out"]}}, r"the folder has no stored weight of proj_out"),
        ({"layers": None}, r"config\.json names no stored linears"),
        ({"layers": {"nvfp4": None}}, "layers is what Accel writes beside stored weights: save the model again"),
        ({"shape": 3}, "no setting 'shape'"),
    ],
)
def test_folders_that_are_refused(saved: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AccelError, match=message) as refusal:
        WanTransformer3DModel.from_pretrained(edited(saved, tmp_path / "t", **changes))
    assert "\n" not in str(refusal.value)


def test_a_weight_that_is_missing_or_not_finite_is_named(original: Path, saved: Path, tmp_path: Path) -> None:
    gone = edited(saved, tmp_path / "gone")
    written = load_file(gone / WEIGHTS)
    del written["blocks.1.ffn.net.2.scales"]
    save_file(written, gone / WEIGHTS)
    with pytest.raises(AccelError, match=r"the folder has no stored weight of blocks\.1\.ffn\.net\.2"):
        WanTransformer3DModel.from_pretrained(gone)
    shutil.copytree(original / "transformer", tmp_path / "nan")
    written = load_file(tmp_path / "nan" / WEIGHTS)
    written["blocks.2.attn1.to_q.weight"][3, 4] = torch.nan
    save_file(written, tmp_path / "nan" / WEIGHTS)
    with pytest.raises(AccelError, match=r"the weight of blocks\.2\.attn1\.to_q has values that are not finite"):
        WanTransformer3DModel.from_pretrained(tmp_path / "nan", quantization_config=config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device_map": {"": "disk"}}, "not offloaded to the disk while they load"),
        ({"offload_state_dict": True}, "was loaded without a stored weight of blocks"),
    ],
)
def test_ways_of_loading_that_are_refused(
    original: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(AccelError, match=message):
        WanTransformer3DModel.from_pretrained(
            original / "transformer", quantization_config=config(), offload_folder=tmp_path, **settings
        )


def test_weights_in_eight_bits_already_are_refused(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original / "transformer", tmp_path / "t")
    written = load_file(tmp_path / "t" / WEIGHTS)
    name = "blocks.2.attn1.to_q.weight"
    save_file({**written, name: written[name].to(torch.float8_e4m3fn)}, tmp_path / "t" / WEIGHTS)
    with pytest.raises(AccelError, match=r"the weight of blocks\.2\.attn1\.to_q is in float8_e4m3fn already"):
        WanTransformer3DModel.from_pretrained(tmp_path / "t", quantization_config=config(), dtype=torch.bfloat16)


def test_loading_to_a_device(original: Path) -> None:
    """With the device that this machine has; diffusers then hands over where each weight goes."""
    pipe = load(original, config(), device_map="cpu")
    assert len(stored(pipe)) == LINEARS
    expected = one_step(load(original, config()))
    assert torch.equal(one_step(pipe), expected)
    with enable(pipe, quantize="nvfp4") as session:
        one_step(pipe)
    assert last(session)["calls"]["nvfp4"] == 2 * LINEARS
    assert torch.equal(one_step(pipe), expected)


def test_a_compiled_layer_stays_one_graph(saved: Path) -> None:
    layer = stored(load(saved))["blocks.0.attn1.to_q"]
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), expected, rtol=0, atol=0)


def test_a_model_of_no_family_is_refused(original: Path) -> None:
    from diffusers import AutoencoderKLWan

    with pytest.raises(AccelError, match="AutoencoderKLWan is a transformer of no family that Accel knows"):
        AutoencoderKLWan.from_pretrained(original / "vae", quantization_config=config())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_the_stored_weights(saved: Path, copied: Any) -> None:
    pipe = load(saved)
    expected = one_step(pipe)
    twin = copied(pipe.transformer)
    assert not {t.data_ptr() for t in tensors(twin) if t.numel()} & {t.data_ptr() for t in tensors(pipe.transformer)}
    pipe.transformer = twin
    assert len(stored(pipe)) == LINEARS and torch.equal(one_step(pipe), expected)


def test_dequantize_gives_plain_linears_with_the_rounded_numbers(saved: Path, tmp_path: Path) -> None:
    pipe = load(saved)
    numbers = {path: module.weight.clone() for path, module in stored(pipe).items()}
    session = accel.enable(pipe, cache="delta")
    with pytest.raises(AccelError, match=r"accelerated: call accel\.disable"):
        pipe.transformer.dequantize()
    session.disable()
    pipe.transformer.dequantize()
    for path, expected in numbers.items():
        linear = pipe.transformer.get_submodule(path)
        assert type(linear) is torch.nn.Linear and torch.equal(linear.weight, expected)
        assert [name for name, _ in linear.named_parameters()] == ["weight", "bias"] and not list(linear.buffers())
    pipe.transformer.save_pretrained(tmp_path)
    assert torch.equal(
        WanTransformer3DModel.from_pretrained(tmp_path).blocks[0].ffn.net[2].weight, expected_of(numbers)
    )


def expected_of(numbers: dict[str, torch.Tensor]) -> torch.Tensor:
    return numbers["blocks.0.ffn.net.2"]


def test_one_configuration_serves_several_models(original: Path) -> None:
    mine = StoredWeightsConfig("int8", modules_to_not_convert=["blocks.0"], modules_to_convert=None)
    model = WanTransformer3DModel.from_pretrained(original / "transformer", quantization_config=mine)
    assert mine.layers is None, "what was stored is noted in the model's own"
    assert sum(map(len, model.config.quantization_config.layers.values())) == LINEARS * 3 // 4
