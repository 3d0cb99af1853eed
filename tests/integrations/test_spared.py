"""Sensitive linears that are spared from NVFP4 while a model loads: the very ones that `enable` would spare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import accel
from accel.errors import AccelError
from accel.integrations import sparing
from accel.integrations.sparing import Spared
from accel.methods.quantized_linear import QuantizedLinear, hold, store
from accel.methods.stored_linear import StoredLinear
from tests.integrations.stored import LINEARS, config, load, one_step, stored
from tests.methods.quantized import CASE, enable, last

SPARED = 4  # A tenth of the linears.


def spared_by_enable(**settings: Any) -> dict[str, tuple[torch.Tensor, ...]]:
    """By path, what `enable` holds a spared layer in; empty where that is the weight itself."""
    pipe: Any = CASE.build()
    linears = {path for path, module in pipe.transformer.blocks.named_modules() if isinstance(module, nn.Linear)}
    with enable(pipe, **settings):
        modules = {path: pipe.transformer.blocks.get_submodule(path) for path in linears}
        return {
            f"blocks.{path}": module.stored if isinstance(module, QuantizedLinear) else ()
            for path, module in modules.items()
            if getattr(module, "weight_format", None) != "nvfp4"
        }


@pytest.mark.parametrize(("static_format", "rotate"), [("int8", True), ("16bit", False)])
def test_they_are_those_that_enable_would_spare(
    original: Path, tmp_path: Path, static_format: Any, rotate: bool
) -> None:
    method = accel.NVFP4Config(static_share=0.1, static_format=static_format, rotate=rotate)
    expected = spared_by_enable(quantize=method)
    assert len(expected) == SPARED
    pipe: Any = accel.load_pipeline(original, quantize=method)
    pipe.set_progress_bar_config(disable=True)
    plain = CASE.build().transformer
    for path, numbers in expected.items():
        module = pipe.transformer.get_submodule(path)
        if static_format == "int8":
            assert isinstance(module, StoredLinear) and module.rotated == rotate
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(module.stored, numbers, strict=True))
        else:
            assert type(module) is nn.Linear and torch.equal(module.weight, plain.get_submodule(path).weight)
    others = {path: module for path, module in stored(pipe).items() if path not in expected}
    assert {module.weight_format for module in others.values()} == {"nvfp4"} and len(others) == LINEARS - SPARED

    pipe.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "transformer" / "config.json").read_text())["quantization_config"]
    kinds = {kind.removesuffix("-rotated"): len(paths) for kind, paths in described["layers"].items()}
    assert kinds == {"nvfp4": LINEARS - SPARED} | ({"int8": SPARED} if static_format == "int8" else {})
    again = load(tmp_path)
    resting = one_step(pipe)
    assert torch.equal(one_step(again), resting)
    # What was spared stays so, whether the settings say it again or not.
    for settings in ({"quantize": method}, {"quantize": accel.NVFP4Config(rotate=rotate)}):
        with enable(again, **settings) as session:
            one_step(again)
        calls = last(session)["calls"]
        assert calls == {"nvfp4": 2 * (LINEARS - SPARED), "plain": 0, "int8": 2 * SPARED * (static_format == "int8")}
    other = "16bit" if static_format == "int8" else "int8"
    for settings, message in (
        ({"static_share": 0.2}, "it was 0.1 then: leave static_share out"),
        ({"static_share": 0.1, "static_format": other}, f"it was '{static_format}' then: leave static_format out"),
        ({"quantize": "int8"}, "came stored in NVFP4, and int8 has them in INT8"),
    ):
        with pytest.raises(AccelError, match=message):
            enable(again, **{"quantize": accel.NVFP4Config(rotate=rotate), **settings})
    assert torch.equal(one_step(again), resting)


def test_weights_in_whatever_order_they_come() -> None:
    """Also of two that lose as much, the later one is spared, as `enable` has it."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(16, 64, generator=generator) * torch.randn(64, generator=generator) ** n for n in range(6)]
    weights[1] = weights[4].clone()
    chosen = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 5, 1, 0, 4, 3]):
        model, spared = nn.ModuleList(nn.Linear(64, 16) for _ in weights), Spared(2, "int8")
        for place in order:
            linear: Any = model[place]
            held = hold(linear, StoredLinear, "nvfp4", store(weights[place], "nvfp4", False), rotated=False, saved=True)
            spared.see(str(place), place, weights[place], held)
        chosen.append(set(spared.settle(model)))
        kinds = [module.weight_format for module in model]
        assert [str(place) for place, kind in enumerate(kinds) if kind == "int8"] == sorted(chosen[-1])
    assert chosen[0] == chosen[1] == chosen[2] and len(chosen[0]) == 2


def test_where_none_is_spared_none_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*args: Any) -> float:
        raise AssertionError

    monkeypatch.setattr(sparing, "lost", measured)
    linear = nn.Linear(64, 16)
    weight = linear.weight.detach()
    held = hold(linear, StoredLinear, "nvfp4", store(weight, "nvfp4", False), rotated=False, saved=True)
    spared = Spared(0, "int8")
    spared.see("0", 0, weight, held)
    assert spared.settle(nn.ModuleList([linear])) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"static_share": 1.5}, "static_share=1.5 is not possible: it is a fraction"),
        ({"static_share": 0.1, "weights": "int8"}, "spares linears from NVFP4, and weights='int8' has none in it"),
        ({"static_format": "8bit"}, "static_format='8bit' is no format: there are 'int8' and '16bit'"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AccelError, match=message):
        config(**settings)
