"""`accel list`, `accel env`, and the shape of the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

import accel as library
from accel.cli.generate import generate
from accel.config import AccelConfig
from accel.methods.base import registered
from accel.pipelines.families import families
from accel.presets import PRESETS
from tests.cli.conftest import Accel


def test_everything_is_listed(make: Accel) -> None:
    data = make("list", "--format", "json").json
    assert set(data) == {"families", "methods", "presets", "machine"}
    assert set(data["families"]) == set(families())
    assert "WanPipeline" in data["families"]["wan"]["pipelines"]
    assert set(data["methods"]) == set(registered())
    for name, method in data["methods"].items():
        assert set(method["settings"]) == set(registered()[name].config.model_fields)
        for setting in method["settings"].values():
            assert setting["meaning"].endswith(".")
    assert data["methods"]["delta"]["keyword"] == "cache"
    assert {name: AccelConfig.from_dict(p["config"]) for name, p in data["presets"].items()} == {
        name: AccelConfig.from_dict(p) for name, p in PRESETS.items()
    }
    assert data["machine"]["cpu"] is True


def test_the_list_for_a_person(make: Accel) -> None:
    out = make("list").out
    for text in ("Families", "FluxPipeline", "--cache delta", "interval=2", "balanced", "This machine"):
        assert text in out


def test_one_preset(make: Accel) -> None:
    out = make("list", "--preset", "fast").out
    assert "fast" in out and "interval=3" in out and "quality" not in out and "Families" not in out


def test_one_model(make: Accel, accel: Accel, saved: Callable[[str], Path], tmp_path: Path) -> None:
    assert make("list", "-m", "demo", "--format", "json").json["model"]["family"] == "wan"
    assert make("list", "-m", saved("flux"), "--format", "json").json["model"]["family"] == "flux"
    (tmp_path / "other").mkdir()
    index = tmp_path / "other" / "model_index.json"
    index.write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    unknown = accel("list", "-m", "other")
    assert unknown.code == 2 and "is of no family that Accel knows" in unknown.err


def test_env(make: Accel) -> None:
    data = make("env", "--format", "json").json
    assert data["accel"] == library.__version__
    assert data["packages"]["torch"]["version"] and data["packages"]["diffusers"]["version"]
    assert data["cores"] >= 1 and (data["devices"] or data["no_devices"])
    out = make("env").out
    assert "diffusers" in out and "processor" in out


def test_env_compares_with_what_is_needed(make: Accel, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch>=99", "diffusers>=0.1", "no-such-package", 'peft>=99; extra == "test"']
    monkeypatch.setattr("accel.cli.environment.requires", lambda name: needed)
    packages = make("env", "--format", "json").json["packages"]
    fits = {name: packages[name]["fits"] for name in ("torch", "diffusers", "no-such-package", "peft")}
    assert fits == {"torch": False, "diffusers": True, "no-such-package": False, "peft": None}
    assert make("env").out.count("<- does not fit") == 2


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["generate", "--help"], ["--version"]])
def test_help(arguments: list[str], make: Accel) -> None:
    out = make(*arguments).out
    assert "Usage: accel" in out or out == f"accel {library.__version__}\n"


def test_the_number_of_flags_is_bounded() -> None:
    assert len(inspect.signature(generate).parameters) <= 30
