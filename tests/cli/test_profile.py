"""`accel profile`: its files, its table, and what it refuses."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from accel.cli.run_profile import _lines
from accel.measure.ceilings import Ceilings
from accel.measure.profiling import Layer
from tests.repository.tree import ROOT

QUICK = ("--size", "quick", "--steps", "2", "--num-frames", "5")


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch, tmp_path):
    import accel.measure.ceilings as module

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_SIDE", {True: 64})
    monkeypatch.setattr(module, "_COPIED", {True: 1 << 16})


def test_it_writes_its_files_once_and_prints_a_table(make, accel, tmp_path):
    result = make("profile", *QUICK, "-o", "found")
    assert {path.name for path in (tmp_path / "found").iterdir()} == {
        "trace.json", "profile.json", "roofline.png", "waterline.png",
    }  # fmt: skip
    data = json.loads((tmp_path / "found" / "profile.json").read_text())
    assert (data["kind"], data["schema"], data["call"]["num_inference_steps"]) == ("accel profile", 1, 2)
    documented = (ROOT / "docs" / "profiling.md").read_text().partition("## The figures as JSON")[2]
    rows = [line.split("|")[1:3] for line in documented.splitlines() if line.startswith("| `")]
    assert {key for first, _ in rows for key in re.findall(r"`(\w+)`", first)} == set(data)
    inner = {key for first, meaning in rows for key in re.findall(r"`(\w+)`", first + meaning)}
    assert inner >= {*data["layers"][0], *data["operations"][0], *data["ceilings"], *data["machine"], *data["parts"]}
    assert "linear ffn.net.2" in result.out
    (products,) = (line.split() for line in result.out.splitlines() if line.startswith("aten::addmm "))
    assert len(products) == 9 and float(products[5].replace(",", "")) > 0 and products[6].endswith("%")
    again = accel("profile", *QUICK, "-o", "found")
    assert again.code == 2 and "exists; choose another name, or add --overwrite" in again.err


def test_what_is_not_counted_is_said_so(make, tmp_path, monkeypatch):
    monkeypatch.setattr("accel.measure.profiling._width", lambda attention: None)
    out = make("profile", *QUICK, "-o", "found").out
    (line,) = (line for line in out.splitlines() if line.startswith("attention attn1 "))
    assert line.endswith("not counted")
    layers = json.loads((tmp_path / "found" / "profile.json").read_text())["layers"]
    assert {layer["flops"] for layer in layers if layer["name"].startswith("attention")} == {None}


@pytest.mark.parametrize(("flops", "said"), [(104.0, False), (150.0, True)])
def test_more_than_a_ceiling_is_explained(flops, said):
    layer = Layer("linear a", "a", 0, calls=1, flops=flops, moved=1.0, seconds=1.0)
    found = SimpleNamespace(seconds=2.0, parts={"denoiser": 1.0}, caches={}, layers=[layer], operations=[])
    out = "\n".join(_lines(found, Ceilings(100.0, 100.0)))
    assert ("150% of a ceiling: " in out and "--measure-ceilings" in out) is said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-m", "nowhere"], "there is no prompt"),
        (["--preset", "slow"], "no preset 'slow'"),
        (["--steps", "0"], "--steps 0 is not possible"),
    ],
)
def test_it_refuses_in_one_line(accel, tmp_path, arguments, reason):
    result = accel("profile", "--size", "quick", *arguments, "-o", "found")
    assert result.code == 2 and reason in result.err and len(result.err.splitlines()) == 1
    assert not (tmp_path / "found").exists()
