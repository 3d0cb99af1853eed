"""The powers of two by which NVFP4 activations are scaled: fixed ones, and those that a calibration found."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

import accel
from accel.errors import AccelError, AccelWarning
from accel.kernels.nvfp4 import quantize_nvfp4
from accel.kernels.quantized_linear import fitting_scale
from accel.measure.calibration import calibrate_mixed, calibrate_nvfp4
from accel.methods.activation_scales import Largest, ScaleCalibration
from accel.methods.layer_choice import Layer
from accel.methods.precision_calibration import Calibration
from accel.methods.quantized_linear import QuantizedLinear
from tests.methods.quantized import CASE, enable, last, linear, quantized, run

X = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("largest", [1.0, 1.999, 2.0, 3e-20, 6e4, 3e38])
def test_what_fits_is_a_power_of_two_with_room_above(largest: float) -> None:
    scale = fitting_scale(torch.tensor(largest)).item()
    assert math.frexp(scale)[0] == 0.5
    held = 6 * 448 * scale / torch.tensor(largest).item()
    assert 2.6 < held < 5.3
    _, groups, _ = quantize_nvfp4(torch.full((1, 16), largest), torch.tensor(scale))
    assert 85 <= groups.float().item() <= 176


def test_what_fits_nothing() -> None:
    assert fitting_scale(torch.tensor(0.0)) == 2.0**-100
    assert fitting_scale(torch.tensor(torch.inf)).isinf() and fitting_scale(torch.tensor(torch.nan)).isinf()


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(("factor", "gains"), [(2.0**-14, 4.0), (2.0**16, 4.0), (1.0, None)])
def test_one_layer(rotated: bool, factor: float, gains: float | None) -> None:
    module, x = quantized(linear(bias=False), "nvfp4", rotated=rotated), X * factor
    module.choose("int8", look=2, measure="nvfp4")
    module(x)
    measured, largest = module.seen[3].item(), module.seen[4]
    exact = torch.nn.functional.linear(x, module.weight)
    errors = {}
    for name, scale in (("fixed", None), ("fitting", fitting_scale(largest).item())):
        module.scale_activations(scale)
        module.choose("nvfp4")
        errors[name] = ((module(x) - exact).norm() / exact.norm()).item()
    assert errors["fitting"] == pytest.approx(measured, rel=1e-4), "what is measured is what will be"
    assert 0.08 < errors["fitting"] < 0.11
    if gains is None:
        assert errors["fitting"] == errors["fixed"], "a power of two changes nothing where both hold all magnitudes"
    else:
        assert errors["fixed"] > gains * errors["fitting"]


def odd_pipeline() -> Any:
    """Tiny Wan, the same function as always, but with activations far from 1 in front of two layers."""
    pipe = CASE.build()
    with torch.no_grad():
        for block, factor in ((1, 2.0**17), (2, 2.0**-17)):
            attention = pipe.transformer.blocks[block].attn1
            for parameter in attention.to_v.parameters():
                parameter *= factor
            attention.to_out[0].weight /= factor
    return pipe


def scales(pipe: Any) -> dict[str, float]:
    found = pipe.transformer.named_modules()
    return {p: m.activation_scale.item() for p, m in found if isinstance(m, QuantizedLinear)}


@pytest.mark.filterwarnings("ignore:.*emulated on:accel.errors.AccelWarning")
def test_a_calibration_finds_scales_that_gain(tmp_path: Any) -> None:
    pipe = odd_pipeline()
    plain = run(pipe, num_inference_steps=2)
    large, tiny = (f"blocks.{block}.attn1.to_out.0" for block in (1, 2))
    # Others would take time, and have nothing to gain.
    others = ("blocks.0", "blocks.3", "*.attn2", "*.ffn", "*.to_q", "*.to_k", "*.to_v")
    config = accel.MixedPrecisionConfig(modules_to_not_convert=others, emulate=True)
    found = calibrate_mixed(pipe, [lambda: run(pipe, num_inference_steps=2)], config=config)
    assert set(found.scales) == {f"transformer.{large}", f"transformer.{tiny}"}
    assert found.scales[f"transformer.{large}"] > 2.0**10 and found.scales[f"transformer.{tiny}"] < 2.0**-10
    assert found.quantiles[-1] < 0.3, "errors are those with the fitting scales"
    path = str(found.save(tmp_path / "mixed.json"))

    errors = {}
    # The first step, where nothing is known, is in INT8, and the last call in NVFP4.
    for name, calibration in (("fixed", None), ("calibrated", path)):
        last_call: dict[str, Any] = {}
        with enable(pipe, quantize=config, threshold=1e9, calibration=calibration) as session:
            assert (scales(pipe)[large] == 4.0) == (calibration is None)
            with watching(pipe, (large, tiny), last_call), cut(calibration is None):
                run(pipe, num_inference_steps=2)
        for layer, (x, result) in last_call.items():
            exact = pipe.transformer.get_submodule(layer)(x)
            errors[name, layer] = ((result - exact).norm() / exact.norm()).item()
        report, text = last(session), str(session.summary())
        if calibration is None:
            assert report["activation_scales"] == "1, or 4 where rotated"
            assert f"transformer.{large} were too large for NVFP4 here and were cut: calibrate" in text
            assert f"transformer.{tiny} were zero or too small for NVFP4 here: calibrate" in text
        else:
            assert "NVFP4 activations scaled by powers of two from " in text and " as calibrated" in text
            assert "too large" not in text and "too small" not in text
    for layer in (large, tiny):
        assert errors["calibrated", layer] < 0.2 and errors["fixed", layer] > 0.8, errors
    assert torch.equal(run(pipe, num_inference_steps=2), plain)


def cut(expected: bool) -> Any:
    """What is wrong in a result is a warning; without one, a warning would be an error."""
    return pytest.warns(AccelWarning, match="too large for NVFP4 here and were cut") if expected else nullcontext()


@contextmanager
def watching(pipe: Any, paths: tuple[str, ...], last_call: dict[str, Any]) -> Iterator[None]:
    """Keeps what the layers got and gave in their last call."""

    def keep(path: str) -> Any:
        return pipe.transformer.get_submodule(path).register_forward_hook(
            lambda _, args, result: last_call.update({path: (args[0], result)})
        )

    handles = [keep(path) for path in paths]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("method", ["mixed", "nvfp4"])
def test_without_a_calibration_they_are_fixed(method: str) -> None:
    pipe = CASE.build()
    with enable(pipe, quantize=method, **({"emulate": True} if method == "mixed" else {})) as session:
        run(pipe, num_inference_steps=2)
        assert set(scales(pipe).values()) == {4.0 if method == "mixed" else 1.0}
    assert last(session)["activation_scales"] == "1, or 4 where rotated"
    assert "NVFP4 activations scaled by 1, or 4 where rotated" in str(session.summary())


def test_files_of_an_earlier_calibration_are_read_and_broken_ones_are_not(tmp_path: Any) -> None:
    found = Calibration("f", "nvfp4", True, {"a": (1.0, 0.0)}, {"a": 1.0}, [0.1, 0.2], {"a": 0.5})
    path = found.save(tmp_path / "mixed.json")
    assert Calibration.load(path) == found
    data = json.loads(path.read_text())
    for scale in (0.75, 0.0, -0.5, math.inf, "1"):
        path.write_text(json.dumps({**data, "scales": {"a": scale}}))
        with pytest.raises(AccelError, match=r"cannot read the calibration .*mixed\.json"):
            Calibration.load(path)
    del data["scales"]
    path.write_text(json.dumps({**data, "version": 1}))
    assert Calibration.load(path).scales == {}


@pytest.mark.filterwarnings("ignore:.*emulated on:accel.errors.AccelWarning")
def test_weights_that_came_stored_keep_no_scale(tmp_path: Any) -> None:
    odd_pipeline().save_pretrained(tmp_path / "model")
    pipe: Any = accel.load_pipeline(tmp_path / "model", quantize="mixed")
    pipe.set_progress_bar_config(disable=True)
    path = str(calibrate_mixed(pipe, [lambda: run(pipe, num_inference_steps=2)]).save(tmp_path / "mixed.json"))
    copies = {buffer: buffer.clone() for buffer in pipe.transformer.buffers()}
    with enable(pipe, quantize="mixed", calibration=path):
        calibrated = scales(pipe)
        assert len(set(calibrated.values())) > 2
        # As groups do that are offloaded with a stream, which have copies of all buffers from before.
        for buffer, copied in copies.items():
            buffer.data = copied
        assert scales(pipe) == calibrated
    assert set(scales(pipe).values()) == {4.0}


@pytest.mark.filterwarnings("ignore:.*emulated on:accel.errors.AccelWarning")
def test_a_calibration_of_nvfp4_finds_scales_that_gain(tmp_path: Any) -> None:
    pipe = odd_pipeline()
    plain = run(pipe, num_inference_steps=2)
    large, tiny = (f"blocks.{block}.attn1.to_out.0" for block in (1, 2))
    others = ("blocks.0", "blocks.3", "*.attn2", "*.ffn", "*.to_q", "*.to_k", "*.to_v")
    config = accel.NVFP4Config(modules_to_not_convert=others)
    found = calibrate_nvfp4(pipe, [lambda: run(pipe, num_inference_steps=2)], config=config)
    assert torch.equal(run(pipe, num_inference_steps=2), plain), "it comes back as it was"
    assert set(found.scales) == {f"transformer.{large}", f"transformer.{tiny}"}
    assert found.scales[f"transformer.{large}"] > 2.0**5 and found.scales[f"transformer.{tiny}"] < 2.0**-10
    assert found.describe().startswith("NVFP4 activations of 2 layers are scaled by powers of two from ")
    path = str(found.save(tmp_path / "nvfp4.json"))
    assert ScaleCalibration.load("nvfp4", path) == found

    errors = {}
    for name, calibration in (("fixed", None), ("calibrated", path)):
        last_call: dict[str, Any] = {}
        session = enable(pipe, quantize=config, calibration=calibration)
        with session, watching(pipe, (large, tiny), last_call), cut(calibration is None):
            run(pipe, num_inference_steps=2)
        for layer, (x, result) in last_call.items():
            exact = pipe.transformer.get_submodule(layer)(x)
            errors[name, layer] = ((result - exact).norm() / exact.norm()).item()
        said, text = last(session)["activation_scales"], str(session.summary())
        if calibration is None:
            assert said == "1, or 4 where rotated" and "were cut: calibrate" in text
        else:
            assert said.startswith("powers of two from ") and said.endswith(" as calibrated")
            assert "too large" not in text and "too small" not in text
    for layer in (large, tiny):
        assert errors["calibrated", layer] < 0.2 and errors["fixed", layer] > 0.8, errors

    with enable(pipe, quantize="nvfp4", calibration=path) as session:
        run(pipe, num_inference_steps=1)
    assert last(session)["activation_scales"].endswith(" as calibrated, 38 others by 1, or 4 where rotated")
    for settings, message in (
        ({"rotate": True}, "was made for rotate=False: calibrate again"),
        ({"quantize": "mixed"}, "it has no errors of layers, and `accel calibrate mixed` makes one"),
        ({"calibration": "gone.json"}, "cannot read the calibration gone.json"),
    ):
        with pytest.raises(AccelError, match=message):
            enable(pipe, **{"quantize": "nvfp4", "calibration": path, **settings})
    with pytest.raises(AccelError, match="a calibration is made without another"):
        calibrate_nvfp4(pipe, [], config=accel.NVFP4Config(calibration=path))
    with torch.no_grad():
        pipe.transformer.blocks[0].attn1.to_q.weight *= 2
    with pytest.raises(AccelError, match="was made for other weights: calibrate again"):
        enable(pipe, quantize="nvfp4", calibration=path)


def test_a_calibration_of_nvfp4_takes_its_own_files_alone(tmp_path: Any) -> None:
    mixed = Calibration("f", "nvfp4", True, {"a": (1.0, 0.0)}, {"a": 1.0}, [0.1, 0.2], {"a": 0.5})
    with pytest.raises(AccelError, match="it was made for mixed, and `accel calibrate nvfp4` makes one"):
        ScaleCalibration.load("nvfp4", mixed.save(tmp_path / "mixed.json"))
    path = ScaleCalibration("f", False, {"a": 0.5}).save(tmp_path / "nvfp4.json")
    data = json.loads(path.read_text())
    for wrong in ({"version": 2}, {"scales": {"a": 0.75}}, {"odd": 1}):
        path.write_text(json.dumps({**data, **wrong}))
        with pytest.raises(AccelError, match=r"nvfp4 cannot read the calibration .*nvfp4\.json"):
            ScaleCalibration.load("nvfp4", path)


def test_nothing_is_calibrated_on_nothing_or_on_what_is_not_finite() -> None:
    layer = Layer("transformer", 0, "a", linear(), 0, False)
    for magnitudes, message in (
        ((), "measured nothing"),
        ((0.0,), "measured nothing"),
        ((1.0, math.nan, 2.0), r"activations of transformer\.a were not finite"),
        ((math.inf,), "were not finite"),
    ):
        largest = Largest()
        for magnitude in magnitudes:
            largest.add(layer, magnitude)
        with pytest.raises(AccelError, match=message):
            largest.calibration("nvfp4", "f", False)
