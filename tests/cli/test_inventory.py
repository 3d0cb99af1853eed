"""`accel list`, `accel env`, and the shape of the command line."""

from __future__ import annotations

import inspect
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

import accel as library
from accel.cli import inventory
from accel.cli.generate import generate
from accel.cli.printing import columns, terminal_width
from accel.config import AccelConfig
from accel.methods.base import registered
from accel.pipelines.families import families
from accel.presets import PRESETS
from tests.cli.conftest import Accel


def test_everything_is_listed(make: Accel) -> None:
    data = make("list", "--format", "json").json
    assert set(data) == {"families", "methods", "together", "presets", "machine"}
    assert set(data["families"]) == set(families())
    assert "WanPipeline" in data["families"]["wan"]["pipelines"]
    assert set(data["methods"]) == set(registered())
    for name, method in data["methods"].items():
        assert set(method["settings"]) == set(registered()[name].config.model_fields)
        for setting in method["settings"].values():
            assert setting["meaning"].endswith(".")
    assert data["methods"]["delta"]["keyword"] == "cache"
    assert data["methods"]["delta"]["needs"][0] == "runs of 8 steps or more, to bring much"
    together = {tuple(pair["methods"]): pair["refused"] for pair in data["together"]}
    assert together["adaspa", "tdc"] == {} and data["families"]["wan"]["refused_methods"] == {}
    assert set(together["delta", "tdc"]) == set(families()), "refused on every family"
    assert {name: AccelConfig.from_dict(p["config"]) for name, p in data["presets"].items()} == {
        name: AccelConfig.from_dict(p) for name, p in PRESETS.items()
    }
    assert data["machine"]["cpu"] is True


def test_the_list_for_a_person(make: Accel) -> None:
    out = make("list").out
    assert re.search(r"  adaspa and tdc +stand together\n", out)
    assert re.search(r"  delta and tdc +delta and tdc both take the blocks: use one of the two\n", out)
    # The line may be folded.
    assert "tested on random weights, on no real ones" in " ".join(out.split())
    for text in ("Families", "FluxPipeline", "--cache delta", "interval=2", "balanced", "This machine"):
        assert text in out


@pytest.mark.parametrize("width", [80, 100])
def test_the_list_fits_a_terminal(width: int, make: Accel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make("list").out
    monkeypatch.setattr(inventory, "terminal_width", lambda: width)
    narrow = make("list").out
    assert max(map(len, narrow.splitlines())) <= width < max(map(len, whole.splitlines()))
    assert narrow.split() == whole.split(), "nothing is cut off"


def test_a_last_column_goes_on_beside_the_others_or_below_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("name", "what it means " * 4), ("longer name", "short")]
    assert columns(rows) == columns(rows, width=80) and len(columns(rows)) == 2
    assert columns(rows, width=50) == [
        "  name         what it means what it means what it",
        "               means what it means",
        "  longer name  short",
    ]
    assert columns(rows, width=40) == [
        "  name",
        "      what it means what it means what",
        "      it means what it means",
        "  longer name",
        "      short",
    ]
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert terminal_width() is None, "what is no terminal gets whole lines"


def test_one_preset(make: Accel) -> None:
    out = make("list", "--preset", "fast").out
    assert (
        "fast" in out
        and "threshold=0.4" in out
        and "min_tokens=4096" in out
        and "quality" not in out
        and "Families" not in out
    )


def test_all_that_a_preset_turns_on_for_a_model(make: Accel) -> None:
    data = make("list", "--preset", "fast", "--model", "demo", "--format", "json").json
    assert data["model"]["family"] == "wan" and data["model"]["guidance"] == "separate"
    assert data["turned_on"]["by"] == "fast"
    assert set(data["turned_on"]["methods"]) == {"pisa", "tdc"} and data["turned_on"]["left_out"] == []
    (asked,) = PRESETS["fast"]["cache"]
    settings = {name: entry["value"] for name, entry in data["turned_on"]["methods"]["tdc"]["settings"].items()}
    assert settings == registered()["tdc"].config(**{k: v for k, v in asked.items() if k != "method"}).model_dump()
    out = make("list", "--preset", "fast", "--model", "demo").out
    assert out.startswith("demo: WanPipeline, of the family wan (Wan 2.1 and 2.2)\n\nWhat the preset fast turns on")
    for name, value in settings.items():
        assert f"      {name}={value} " in out
    assert "No method is on" in make("list", "--preset", "none", "-m", "demo").out


def test_values_that_depend_on_the_family_and_the_file_beside_a_model(
    make: Accel, accel: Accel, saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for family, density in (("flux", 0.15), ("wan", 0.125)):
        folder = tmp_path / family
        for file in ("model_index.json", "transformer/config.json"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes((saved(family) / file).read_bytes())
        data = make("list", "-m", folder, "--format", "json").json
        assert data["turned_on"]["by"] == "balanced" and not data["turned_on"]["asked_for"]
        AccelConfig(attention={"method": "pisa", "tail": "none"}, cache="flashblock").save_pretrained(folder)
        methods = make("list", "-m", folder, "--format", "json").json["turned_on"]["methods"]
        assert methods["pisa"]["settings"]["density"]["value"] == density
        assert methods["flashblock"]["settings"]["density"]["value"] is None
        for name in (folder, f"~/{family}"):
            assert "What accel_config.json turns on here, as long as nothing" in make("list", "-m", name).out
        assert set(make("list", "-m", folder, "--preset", "fast", "--format", "json").json["turned_on"]["methods"]) == {
            "pisa",
            "tdc",
        }
    AccelConfig(attention="pisa", cache="flashblock").save_pretrained(folder)
    refused = accel("list", "-m", folder)
    assert refused.code == 2 and "would both stand for the blocks that are not exact" in refused.err
    AccelConfig(attention="pisa").save_pretrained(folder)
    file = folder / "transformer" / "config.json"
    file.write_text(file.read_text().replace('"attention_head_dim": 64', '"attention_head_dim": 20'))
    refused = accel("list", "-m", folder)
    assert refused.code == 2 and "transformer has heads of 20" in refused.err
    fitting = make("list", "-m", folder, "--preset", "fast", "--format", "json").json["turned_on"]
    assert set(fitting["methods"]) == {"tdc"}
    (remark,) = fitting["left_out"]
    assert remark.startswith("pisa is left out: pisa has kernels for head sizes") and "heads of 20" in remark
    assert f"  {remark}\n" in make("list", "-m", folder, "--preset", "fast").out
    file.write_text("[")
    assert "is not a component's configuration" in accel("list", "-m", folder).err


def test_models_that_are_refused(accel: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    index = tmp_path / "other" / "model_index.json"
    index.write_text('{"_class_name": "StableDiffusionPipeline"}')
    unknown = accel("list", "-m", "other")
    assert unknown.code == 2 and "is of no family that Accel knows" in unknown.err
    wrong = accel("list", "-m", "dmeo")
    assert wrong.code == 2 and 'did you mean "demo"?' in wrong.err
    assert accel("list", "-m", "demo", "--preset", "fastest").code == 2
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    away = accel("list", "-m", "org/name")
    assert away.code == 2 and "there is no folder org/name, it is not (whole) in the cache" in away.err


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
    assert len(inspect.signature(generate).parameters) <= 32
