"""FlashBlock by calibration: what is measured, which heads are computed anew, and what a file does not hold for."""

from __future__ import annotations

import json
import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import accel
from accel.errors import AccelError
from accel.measure.calibration import calibrate_flashblock
from accel.methods.flashblock import FlashBlockConfig
from accel.methods.flashblock_calibration import Calibration, Conditions, Measurements
from accel.methods.residual import Residuals
from tests.sparse_calls import in_blocks, last, moment, some_blocks, tensors
from tests.tiny_pipelines import TINY, add_lora

CASE = TINY["wan"]
DENSITY = 0.5


@cache
def built() -> tuple[Any, Tensor]:
    pipe = CASE.build()
    return pipe, CASE.run(pipe)


@cache
def calibrated(**bounds: float) -> Calibration:
    pipe, _ = built()
    return calibrate_flashblock(pipe, [lambda: CASE.run(pipe)], config=FlashBlockConfig(density=DENSITY, **bounds))


def middle() -> float:
    """A change of the log-sum-exp that some heads exceed and others do not."""
    return sorted(value for values in calibrated().drift.values() for value in values)[20]


def by_the_file(made: Calibration, first: int) -> tuple[list[int], list[int], float]:
    """What a run does in each step, refreshed and reused calls of both branches, and the density of those that reuse.

    `first`: the first step that can reuse; the one before keeps all layers. A layer is refreshed where all heads are
    due; in the others those that are due attend to all blocks, and each of the rest to five of nine.
    """
    layers = range(len(built()[0].transformer.blocks))
    due = {step: [made.heads(moment(step), layer) or [] for layer in layers] for step in range(first, 8)}
    refreshed = [2 * sum(map(all, due[step])) for step in due]
    shares = [5 / 9 + 4 / 9 * sum(heads) / 2 for step in due for heads in due[step] if not all(heads)]
    before = [0] * (first - 1)
    return (
        [*before, 2 * len(layers), *refreshed],
        [*before, 0, *(2 * len(layers) - count for count in refreshed)],
        sum(shares) / len(shares),
    )


def run_with(calibration: Calibration, folder: Path, **call: Any) -> tuple[Tensor, dict[str, Any], str]:
    pipe, _ = built()
    file = str(calibration.save(folder / "calibration.json"))
    bounds = {name: getattr(calibration.conditions, name) for name in ("similarity", "lse_drift")}
    with accel.enable(pipe, cache=FlashBlockConfig(density=DENSITY, calibration=file, **bounds)) as session:
        out = CASE.run(pipe, **call)
    return out, last(session)["methods"]["flashblock"], str(session.summary())


def test_calibrating_gives_dense_results_and_comes_off() -> None:
    pipe, plain = built()
    results: list[Tensor] = []
    calibrate_flashblock(pipe, [lambda: results.append(CASE.run(pipe))], config=FlashBlockConfig(density=DENSITY))
    assert (results[0] - plain).norm() < 1e-4 * plain.norm()
    assert torch.equal(CASE.run(pipe), plain)


def test_what_is_measured() -> None:
    calibration = calibrated()
    layers = len(built()[0].transformer.blocks)
    # The first two steps are dense and the third keeps what the others are compared with.
    assert set(calibration.cosine) == {f"transformer/{step}/{layer}" for step in range(3, 8) for layer in range(layers)}
    for place, cosines in calibration.cosine.items():
        assert len(cosines) == len(calibration.drift[place]) == 2
        assert all(0.5 < cosine < 1 for cosine in cosines) and all(drift > 0 for drift in calibration.drift[place])


def test_heads_follow_the_bounds() -> None:
    conditions = Conditions("", 8, "flashblock", DENSITY, 64, "call", similarity=0.85, lse_drift=0.05)
    cosine, drift = [0.9, 0.84, 0.9, math.nan], [0.04, 0.04, 0.06, 0.0]
    calibration = Calibration(conditions, {"transformer/1/0": cosine}, {"transformer/1/0": drift})
    assert calibration.heads(moment(1), 0) == [False, True, True, True]
    assert calibration.heads(moment(1), 1) is None and calibration.heads(moment(2), 0) is None
    assert calibration.due(moment(1)) and not calibration.due(moment(2)) and not calibration.due(moment(10))


def test_measurements_of_what_did_not_move() -> None:
    measured = Measurements(0.85, 0.05)
    out, lse = torch.randn(1, 6, 2, 8), torch.randn(1, 2, 6)
    lse[0, 0, :3] = -math.inf
    out[0, :3, 0] = 0.0
    assert not measured.see(moment(1), 0, (out, lse), (out, lse)).any()
    moved = out.clone()
    moved[:, :, 1] *= -1
    assert measured.see(moment(2), 0, (out, lse), (moved, lse)).tolist() == [False, True]
    assert measured.see(moment(3), 0, (out, lse), (out, lse + 0.2)).tolist() == [True, True]


def test_only_the_heads_that_are_asked_for_are_computed_anew() -> None:
    residuals = Residuals()
    first = in_blocks(moment(0), tensors(1))
    residuals.refresh(first, some_blocks(first, 0.4))
    now = in_blocks(moment(1), tensors(2))
    kept = residuals.at(now)
    assert kept is not None
    old, old_lse = kept.out.clone(), kept.lse.clone()
    whole, _ = residuals.others(now, kept.chosen)
    heads = torch.tensor([True, False])
    part, counts = residuals.others(now, kept.chosen, heads)
    assert counts[:, 0].all() and not counts[:, 1].any()
    kept.renew(part, heads)
    assert torch.equal(kept.out[:, :, 0], whole[0][:, :, 0]) and torch.equal(kept.lse[:, 0], whole[1][:, 0])
    assert torch.equal(kept.out[:, :, 1], old[:, :, 1]) and torch.equal(kept.lse[:, 1], old_lse[:, 1])
    dense, _ = now.dense(slice(0, 132))
    error = (residuals.reuse(now, kept) - dense).square().sum((0, 1, 3))
    apart = (error / dense.square().sum((0, 1, 3))).sqrt()
    assert apart[0] < 1e-5 < 1e-2 < apart[1]


def test_all_heads_anew_is_dense_and_none_is_the_least(tmp_path: Path) -> None:
    _, plain = built()
    layers = len(built()[0].transformer.blocks)
    errors, reports = {}, {}
    for name, bounds in {
        "some": {"similarity": 0.0, "lse_drift": middle()},
        "none": {"similarity": -1.0, "lse_drift": 100.0},
    }.items():
        out, reports[name], text = run_with(calibrated(**bounds), tmp_path)
        errors[name] = (out - plain).norm() / plain.norm()
        assert f"by the calibration {tmp_path / 'calibration.json'}" in text
    assert reports["none"]["refreshed"] == 2 * layers and reports["none"]["density"] == pytest.approx(5 / 9)
    refreshed, reused, density = by_the_file(calibrated(similarity=0.0, lse_drift=middle()), 3)
    assert reports["some"]["refreshed_by_step"] == refreshed and reports["some"]["reused_by_step"] == reused
    assert sum(refreshed) > 2 * layers and reports["some"]["density"] == pytest.approx(density)
    assert density > 5 / 9, "of some layers one head is due"
    assert errors["some"] < errors["none"]
    with pytest.warns(accel.AccelWarning, match="every call was due for a refresh by the calibration"):
        out, _, _ = run_with(calibrated(similarity=1.0, lse_drift=0.0), tmp_path)
    assert (out - plain).norm() < 1e-4 * plain.norm()


def test_which_heads_are_anew_goes_to_the_device_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each copy makes the host wait for a GPU."""
    made = calibrated(similarity=0.0, lse_drift=middle())
    on_device = made.on_device(torch.device("cpu"))
    for place, (anew, numbers) in on_device.items():
        _, step, layer = place.split("/")
        assert anew.tolist() == made.heads(moment(int(step)), int(layer))
        assert numbers.tolist() == [head for head, one in enumerate(anew.tolist()) if one]
    plain_tensor, copies = torch.tensor, []

    def tensor(*args: Any, **kwargs: Any) -> Tensor:
        if sys._getframe(1).f_globals["__name__"].startswith("accel.methods.flashblock"):
            copies.append(kwargs["device"])
        return plain_tensor(*args, **kwargs)

    monkeypatch.setattr(torch, "tensor", tensor)
    _, report, _ = run_with(made, tmp_path)
    assert report["reused"] > 0 and report["density"] > 5 / 9 and len(copies) == 2


def test_without_a_file_the_interval_holds_and_is_named() -> None:
    pipe, _ = built()
    with accel.enable(pipe, cache="flashblock") as session:
        CASE.run(pipe)
    assert last(session)["methods"]["flashblock"]["rule"] == "interval 3, without calibration"


def test_a_file_comes_back(tmp_path: Path) -> None:
    assert Calibration.load(calibrated().save(tmp_path / "a.json")) == calibrated()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 2, "conditions": {"density": 1}}'])
def test_a_file_that_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    pipe, plain = built()
    with pytest.raises(AccelError, match=r"flashblock cannot read the calibration .*a\.json"):
        accel.enable(pipe, cache="flashblock", calibration=str(file))
    with pytest.raises(AccelError, match="cannot read"):
        Calibration.load(tmp_path / "nowhere.json")
    assert torch.equal(CASE.run(pipe), plain)


@pytest.mark.parametrize(
    ("changed", "settings", "line"),
    [
        ({"fingerprint": "0" * 16}, {}, "was made for other weights: calibrate again"),
        ({}, {"similarity": 0.9}, r"was made for similarity=0.85, not 0.9: calibrate again"),
        ({}, {"density": 0.25}, r"was made for density=0.5, not 0.25"),
        ({}, {"block_size": 32}, "was made for block_size=64, not 32"),
        ({}, {"tiling": "none"}, "was made for tiling=call, not none"),
        ({}, {"lse_drift": 0.1}, "was made for lse_drift=0.05, not 0.1"),
        ({}, {"attention": "adaspa"}, "was made for blocks that flashblock chooses, not adaspa: calibrate again"),
        ({}, {"attention": "pisa", "tail": "none"}, "was made for blocks that flashblock chooses, not pisa"),
        ({"num_steps": 50}, {}, "was made for num_steps=50, not 8"),
    ],
)
def test_what_a_file_does_not_hold_for(
    tmp_path: Path, changed: dict[str, Any], settings: dict[str, Any], line: str
) -> None:
    pipe, plain = built()
    file = calibrated().save(tmp_path / "a.json")
    data = json.loads(file.read_text())
    data["conditions"] |= changed
    file.write_text(json.dumps(data))
    settings = {"density": DENSITY, "calibration": str(file), **settings}
    with pytest.raises(AccelError, match=line), accel.enable(pipe, cache="flashblock", **settings):
        CASE.run(pipe)
    assert torch.equal(CASE.run(pipe), plain)


def test_an_adapter_that_comes_while_enabled_is_told(tmp_path: Path) -> None:
    pipe = CASE.build()
    plain = CASE.run(pipe)
    bounds = {"similarity": -1.0, "lse_drift": 100.0}
    file = str(calibrated(**bounds).save(tmp_path / "a.json"))
    config = FlashBlockConfig(density=DENSITY, calibration=file, **bounds)
    with accel.enable(pipe, cache=config) as session:
        accelerated = CASE.run(pipe)
        add_lora(pipe)
        with pytest.raises(
            AccelError, match="made for other weights: an adapter, such as a LoRA, was loaded or taken out"
        ):
            CASE.run(pipe)
        pipe.transformer.unload_lora()
        assert torch.equal(CASE.run(pipe), accelerated)
        assert last(session)["methods"]["flashblock"]["reused"] > 0
    assert torch.equal(CASE.run(pipe), plain)


def test_weights_are_told_apart(tmp_path: Path) -> None:
    other = CASE.build(seed=1)
    file = str(calibrated().save(tmp_path / "a.json"))
    with pytest.raises(AccelError, match="other weights"):
        accel.enable(other, cache="flashblock", density=DENSITY, calibration=file)


def test_calibration_runs_that_do_not_go_together() -> None:
    pipe, plain = built()
    for settings, runs, line in (
        ({}, [8, 6], "all calibration runs take one num_steps, not 6 too"),
        ({}, [], "the calibration runs reused nothing"),
        ({"interval": 1}, [8], "at an interval above 1"),
    ):
        calls = [lambda steps=steps: CASE.run(pipe, num_inference_steps=steps) for steps in runs]
        with pytest.raises(AccelError, match=line):
            calibrate_flashblock(pipe, calls, config=FlashBlockConfig(density=DENSITY, **settings))
    assert torch.equal(CASE.run(pipe), plain)


def test_beside_a_sparse_attention(tmp_path: Path) -> None:
    pipe, plain = built()
    attention = accel.AdaSpaConfig(density=DENSITY, search_steps=(0.0,))
    bounds = {"similarity": 0.0, "lse_drift": middle()}
    made = calibrate_flashblock(pipe, [lambda: CASE.run(pipe)], attention=attention, config=FlashBlockConfig(**bounds))
    file = str(made.save(tmp_path / "a.json"))
    with accel.enable(pipe, attention=attention, cache=FlashBlockConfig(calibration=file, **bounds)) as session:
        out = CASE.run(pipe)
    report = last(session)["methods"]["flashblock"]
    # The first step is the search's, and the second keeps what the others reuse.
    refreshed, reused, density = by_the_file(made, 2)
    assert report["refreshed_by_step"] == refreshed and report["reused_by_step"] == reused
    assert sum(reused) > 0 and sum(refreshed[2:]) > 0, "the bounds are such that there is both"
    assert report["density"] == pytest.approx(density)
    assert (out - plain).norm() < 0.1 * plain.norm()
