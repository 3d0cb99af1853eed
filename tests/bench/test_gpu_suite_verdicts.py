"""What the GPU suite says of speed: only of right results, with their spread, and of nothing that it was not told."""

from __future__ import annotations

import json
import math
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from accel.measure.timing import Timing
from bench.gpu_suite import __main__ as command
from bench.gpu_suite import attention, cells, environment, exactness, pipelines, report
from bench.gpu_suite.figures import require_within, said

GREEN = {"state": "done", "error": 0.0, "bound": 1e-2, "same_bits": True, "correct": True}
RED = {**GREEN, "error": None, "correct": False}
AIM = "wan-14b-720p/block64/0.125"


def faster(*seconds: float) -> dict[str, Any]:
    """What is said of such seconds beside rounds of ten."""
    return said(Timing((10.0,) * len(seconds)), Timing(seconds))


def rows_of_attention() -> dict[str, dict[str, Any]]:
    return {
        "none, kernel": {"ms": 2.0, "speed_up": faster(1.8, 1.8, 1.8), "over_flex": faster(9.9, 10.0, 10.1)},
        "none, all": {"ms": 2.1, "speed_up": faster(1.7, 1.8, 1.7)},
        "hybrid, all": {"ms": 2.2, "speed_up": faster(2.2, 1.9, 2.0)},
    }


def test_aims_stand_beside_the_figures() -> None:
    results = {AIM: {"state": "done", "rows": rows_of_attention()}}
    assert report.aims_of_attention(results) == [
        f"{AIM}, none, all, over the fastest dense backend: 5.88× ± 0.58, aim 5×: met",
        f"{AIM}, zeroth, all, over the fastest dense backend: not measured, aim 5×",
        f"{AIM}, hybrid, all, over the fastest dense backend: 5.00× ± 0.97, aim 5×: within the spread of it",
        f"{AIM}, over FlexAttention: no measurable difference (1.00 ± 0.02), aim above 1×: within the spread of it",
    ]
    linear = {"rows": {"int8, all": {"speed_up": faster(9.0, 9.0, 9.0)}}, "conversion_share": 0.01}
    told = report.aims_of_linears({"linear": linear})
    assert told == [
        "linear, over linear: 1.11× ± 0.01, aim 1.5×: not met",
        "linear: conversion 1.0% of the product, aim under 2%, met",
    ]


def test_what_the_recorder_adds_is_judged_by_its_interval() -> None:
    """A thousandth more, of which single pairs are off by several, is under a hundredth; three hundredths are not."""
    off = [0.004, -0.003, 0.002, -0.004, 0.003, -0.002, 0.001, -0.001, 0.0, 0.002] * 2
    plain = Timing((1.0,) * 20)
    rows = {
        name: pipelines.added(Timing(tuple(1 + more + each * noise for each in off)), plain)
        for name, more, noise in (("met", 0.001, 1), ("not", 0.03, 1), ("noisy", 0.01, 5))
    }
    lines = report.aims_of_pipelines({"recorder": {"rows": rows}})
    assert lines == [
        "recorder, met: +0.15% (-0.10% to +0.30%), aim under 1%: met",
        "recorder, not: +3.05% (+2.80% to +3.20%), aim under 1%: not met",
        "recorder, noisy: +1.25% (+0.00% to +2.00%), aim under 1%: within the noise of it",
    ]


@pytest.mark.parametrize(
    ("part", "correctness", "finished", "why"),
    [
        ("attention", {}, True, "not finished"),
        ("attention", {"block_attention/a": GREEN}, False, "not finished"),
        ("attention", {"block_attention/a": GREEN, "delta/b": RED}, True, None),
        ("attention", {"block_attention/a": RED, "delta/b": GREEN}, True, "1 of 1 checks of its kernels are red"),
        ("linears", {"int8_linear/a": {"state": "crashed", "error": "gone"}}, True, "the first is int8_linear/a"),
        ("pipelines", {"block_attention/a": GREEN, "delta/b": RED}, True, "1 of 2 checks of its kernels are red"),
        ("small", {}, False, None),
    ],
)
def test_no_speed_up_without_green_correctness(
    part: str, correctness: dict[str, Any], finished: bool, why: str | None
) -> None:
    found = report.withheld(part, correctness, finished=finished)
    assert found is None if why is None else found is not None and why in found


def test_a_page_tells_speed_ups_or_why_not(tmp_path: Path) -> None:
    cells.save(tmp_path / "attention.json", {AIM: {"state": "done", "rows": rows_of_attention()}})
    told = []
    for finished in (True, False):
        cells.save(tmp_path / "correctness.json", {"block_attention/a": GREEN}, finished=finished)
        silent = command._silent(tmp_path)
        command._write_page(tmp_path, {"device_kind": "cuda"}, {}, silent)
        told.append((tmp_path / "results.md").read_text())
        why = json.loads((tmp_path / "attention.json").read_text())["speed_ups_withheld"]
        assert why == (None if finished else "the part correctness is not finished")
    assert "5.88×" in told[0] and "aim 5×: met" in told[0]
    assert "×" not in told[1].partition("# attention")[2].partition("# linears")[0]
    assert "- no speed-up is told: the part correctness is not finished" in told[1]
    assert "no speed-up is told" in report.summary("attention", cells.load(tmp_path / "attention.json"), "why")


def test_a_figure_that_is_no_number_fails_its_cell(tmp_path: Path) -> None:
    run = cells.Cells(tmp_path, "part", "cpu", time.monotonic() + 60)
    run.run("bad", lambda: {"rows": {"case": {"error": math.nan}}})
    assert run.results["bad"]["state"] == "failed" and "rows" not in run.results["bad"]
    json.loads((tmp_path / "part.json").read_text(), parse_constant=pytest.fail)


def test_errors_are_finite_and_within_their_bounds() -> None:
    require_within({"a": 0.1, "b": 0.5}, {"a": 0.2})
    with pytest.raises(ValueError, match=r"a \(error 3.00e-01, bound 2e-01\), b \(error nan\)"):
        require_within({"a": 0.3, "b": math.nan}, {"a": 0.2})


@pytest.mark.parametrize(("density", "factor"), [(1.0, 1.1), (0.25, math.nan)])
def test_wrong_attention_has_no_speed(monkeypatch: pytest.MonkeyPatch, density: float, factor: float) -> None:
    right = attention.block_attention
    monkeypatch.setattr(attention, "block_attention", lambda *a, **k: (factor * right(*a, **k)[0], None))
    with pytest.raises(ValueError, match="wrong results: none, kernel"):
        attention._one((2, 200, 64), 64, density, "cpu")


def test_an_error_that_is_no_number_is_none() -> None:
    found = exactness.near(torch.float32, lambda x: x / x.sum().sub(x.sum()), torch.zeros(2, 2))
    assert found["error"] is None and not found["correct"]


def test_a_call_ends_within_eight_minutes() -> None:
    assert 60 * command._parser().parse_args([]).minutes + cells.GRACE < 8 * 60


def test_what_packages_need_in_turn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "outer": SimpleNamespace(
            version="2.0", requires=["inner==1.5", "gone>=1", 'other; extra == "more"', "torch>=9"]
        ),
        "inner": SimpleNamespace(version="1.4", requires=["deep"]),
        "torch": SimpleNamespace(version="9.1+cpu", requires=["nvidia-library"]),
    }

    def distribution(name: str) -> Any:
        if name not in known:
            raise PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(environment, "distribution", distribution)
    monkeypatch.setitem(environment._NEEDS, "pipelines", ("outer>=1",))
    monkeypatch.setattr(environment, "_imports", lambda: False)
    assert environment.missing("pipelines") == ["inner==1.5 (1.4 is here)", "gone", "deep"]
    # Nothing that is needed in turn alone stands in the way of what can be imported.
    monkeypatch.setattr(environment, "_imports", lambda: True)
    assert environment.missing("pipelines") == []
    monkeypatch.setitem(environment._NEEDS, "pipelines", ("outer>=1", "absent"))
    assert environment.missing("pipelines") == ["absent", "inner==1.5 (1.4 is here)", "gone", "deep"]
    assert environment.missing("attention") == []


def test_all_that_pipelines_import_is_here() -> None:
    assert environment._imports() and environment.missing("pipelines") == []
