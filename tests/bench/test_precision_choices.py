"""The study of formats: criteria on errors made by hand, what is measured on a tiny pipeline, and the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accel.methods.layer_choice import Layer
from accel.methods.precision_calibration import Calibration
from accel.pipelines.sites import inspect_pipeline
from bench import gemm_errors, precision_study, quantization
from bench.gemm_errors import ACTIVATIONS, PRODUCTS, Errors
from bench.precision_choices import BEST, OWN, RandomRule, TableRule, best, criteria, judge, random_name, replay
from bench.precision_study import BITS, Study, correlation, share_of
from bench.tables import described
from tests.methods.quantized import CASE, enable, last, run

STEPS, BLOCKS, EACH = 8, 4, 2
LAYERS = [
    Layer("t", i, f"blocks.{i // EACH}.linear{i % EACH}", nn.Linear(1, 1), i // EACH, False)
    for i in range(BLOCKS * EACH)
]
CALIBRATION = Calibration(
    "", "nvfp4", True, {x.name: (0.0, 0.1 * x.index) for x in LAYERS}, {}, [0.1 * n for n in range(8)]
)


def made(seed: int = 0) -> Errors:
    """W4A4 is worse the later a layer comes, and a little worse at random; W4A8 is the same everywhere."""
    draw = torch.Generator().manual_seed(seed)
    low = (
        0.1
        + 0.01 * torch.arange(len(LAYERS)).expand(STEPS, -1)
        + 0.001 * torch.rand(STEPS, len(LAYERS), generator=draw)
    )
    errors = {
        "W4A4": low,
        "W4A8": torch.full_like(low, 0.05),
        "W4A16": low * 0,
        "W8A8": low * 0,
        ACTIVATIONS: low - 0.05,
    }
    return Errors(errors, torch.rand(STEPS, BLOCKS, generator=draw))


def study() -> Study:
    return Study(STEPS, LAYERS, [made(0), made(1)], CALIBRATION)


def test_the_ends_and_the_middle_of_the_scale() -> None:
    found = made()
    none, every = (torch.full((STEPS, len(LAYERS)), each) for each in (False, True))
    assert (judge(none, LAYERS, found).bits, judge(none, LAYERS, found).place) == (4.0, 0.0)
    assert judge(every, LAYERS, found).bits == 8.0
    assert judge(every, LAYERS, found).place == pytest.approx(1.0) == judge(every, LAYERS, found).weighted_place
    assert judge(every, LAYERS, found).error == pytest.approx(0.05)


@pytest.mark.parametrize("bits", BITS)
def test_every_criterion_keeps_the_share_and_none_beats_the_best(bits: int) -> None:
    found, share = made(), share_of(bits)
    judged = {
        name: judge(replay(r, LAYERS, found), LAYERS, found) for name, r in criteria(share, STEPS, CALIBRATION).items()
    }
    bound = judge(best(found, share), LAYERS, found)
    for name, each in judged.items():
        # The lines made by hand tell eight layers apart, and no step.
        assert each.bits == pytest.approx(bits, abs=0.45 if name == "calibrated line" else 1e-6), name
        assert each.place <= bound.place + 1e-6 or each.bits > bits
    # Here the error at the first step tells all, and the change of the block nothing.
    assert all(judged[OWN].error < judged[random_name(seed)].error for seed in (0, 1, 2))
    assert judged[OWN].error <= judged["change of the block"].error


def test_rules_know_nothing_at_the_first_step_and_the_step_before_at_the_others() -> None:
    found = made()
    table = replay(criteria(0.5, STEPS, CALIBRATION)["change of the block"], LAYERS, found)
    assert table[0].all()
    for step in range(1, STEPS):
        chosen = found.changes[step - 1][[layer.block for layer in LAYERS]]
        assert chosen[table[step]].min() >= chosen[~table[step]].max()


def test_random_choices_are_drawn_over_all_pairs_once() -> None:
    tables = [replay(lambda seed=seed: RandomRule(0.25, seed), LAYERS, made()) for seed in (0, 0, 1)]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    assert [int(table.sum()) for table in tables] == [16, 16, 16]
    assert torch.equal(replay(lambda: TableRule(tables[0]), LAYERS, made()), tables[0])


def test_correlations_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    assert correlation(x, 5 - 2 * x) == pytest.approx(-1.0)
    assert correlation(x, torch.tensor([1.0, 0.0, 1.0])) == pytest.approx(0.0)
    found = study().to_dict()["correlation"]
    assert found["calibrated line"] > 0.95 and found["error at the first step"] > 0.95
    assert abs(found["change of the block"]) < 0.5


def test_what_never_changes_has_no_correlation_and_the_figures_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    still = study()
    monkeypatch.setattr(Study, "before", lambda self: torch.ones_like(self.errors("W4A4")[:, 1:]))
    figures = still.to_dict()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["correlation"]["change of the block"] is None and set(figures["correlation_by_layer"]) == {None}
    assert "| change of the block | – |" in precision_study.markdown(figures)


def test_the_study_as_text() -> None:
    text = "\n".join(precision_study.markdown(study().to_dict()))
    assert "| linear0 | " in text and f"| {BEST} | " in text
    assert "- 6 bits: mixed precision's own criterion is below all random choices" in text


def test_the_rows_are_possible_settings_and_known_apart() -> None:
    settings = quantization.settings(study())
    assert settings[0].plain and settings[0].steps == STEPS
    assert len({one.fingerprint for one in settings}) == len({one.name for one in settings}) == len(settings)
    rows: list[dict[str, Any]] = [{"setting": one.name, "psnr_db": [30.0]} for one in settings]
    (_, told) = quantization.verdict(rows)
    assert "at 6 bits: mixed precision 30.00 dB, not nearer than all random" in told and "W4A8 of mixed 30.00" in told
    assert quantization.verdict(rows[:3]) == []
    assert "mixed, 6 bits by calibrated line" in {one.name for one in settings}


def test_a_row_puts_its_rule_in() -> None:
    pipe = CASE.build()
    settings = {one.name: one for one in quantization.settings(study())}
    one = settings["mixed, 6 bits by random, seed 1"]
    assert one.prepared is not None and described(one)[-1] == {"prepared": "chosen by random, seed 1"}
    with enable(pipe, one.config) as session:
        one.prepared.do(session)
        run(pipe)
    report = last(session)
    assert report["average_bits"] == 6.0 and report["calls_by_step"]["nvfp4"][0] > 0, "drawn for the first step too"
    assert "by a rule that was put in" in str(session.summary())


def test_what_is_measured_on_a_pipeline(tmp_path: Path) -> None:
    pipe = CASE.build()
    plain = run(pipe, num_inference_steps=2)
    results: list[torch.Tensor] = []
    found = gemm_errors.measure(pipe, 2, lambda: results.append(run(pipe, num_inference_steps=2)))
    assert torch.equal(results[0], plain)
    assert all(found.errors[name].shape == (2, 40) for name in (*PRODUCTS, ACTIVATIONS)) and found.changes.shape == (
        2,
        4,
    )
    means = {name: each.mean().item() for name, each in found.errors.items()}
    assert means["W8A8"] < means["W4A16"] < means["W4A8"] < means["W4A4"] < 0.3
    found.save(tmp_path / "errors.npz")
    again = Errors.load(tmp_path / "errors.npz")
    assert torch.equal(again.changes, found.changes) and torch.equal(again.errors["W4A4"], found.errors["W4A4"])
    assert [path.name for path in tmp_path.iterdir()] == ["errors.npz"]


def test_the_errors_are_those_that_mixed_precision_measures() -> None:
    """In a run of one step without guidance; the first linears get the same inputs in both."""
    pipe = CASE.build()
    call = {"num_inference_steps": 1, "guidance_scale": 1.0}
    found = gemm_errors.measure(pipe, 1, lambda: run(pipe, **call)).errors[ACTIVATIONS][0]
    with enable(pipe, quantize="mixed") as session:
        run(pipe, **call)
        (method,) = session.methods
        seen = [layer.module.seen[3].item() for layer in method.layers["transformer"][:3]]  # type: ignore[attr-defined]
    assert gemm_errors.layers_of(inspect_pipeline(pipe))[0].path == "blocks.0.attn1.to_q"
    assert found[:3].tolist() == pytest.approx(seen, rel=1e-4)
