"""Mixed precision: the rules by hand, and what runs on a tiny pipeline, also beside caches and sparse attention."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

import accel
from accel.errors import AccelError, AccelWarning
from accel.kernels.nvfp4 import quantize_nvfp4
from accel.kernels.quantized_linear import ACTIVATIONS, SEEN, quantized_linear
from accel.measure.calibration import calibrate_mixed
from accel.methods.layer_choice import Layer
from accel.methods.mixed import MixedPrecision, _largest_to_mean, _quadratic_mean, _together
from accel.methods.precision_calibration import Calibration
from accel.methods.precision_rule import ShareRule, ThresholdRule, later_share
from accel.pipelines.families import families
from tests.methods.quantized import CASE, STEPS, enable, last, run
from tests.tiny_pipelines import TINY

LAYERS_A_STEP = 40 * 2


def layers(blocks: int = 4, each: int = 2) -> list[Layer]:
    module = nn.Linear(1, 1)
    return [Layer("t", b * each + n, f"b.{b}.{n}", module, b, False) for b in range(blocks) for n in range(each)]


def test_the_rule_of_the_paper_by_hand() -> None:
    """alpha * Gamma + beta > theta, by layer; what is not known or not a number is on the safe side."""
    lines = {"t.b.0.0": (2.0, 0.0), "t.b.0.1": (0.0, 0.3), "t.b.1.0": (1.0, math.nan)}
    rule = ThresholdRule(0.25, lines)
    changes = {0: 0.12, 1: 0.1, 2: math.nan}
    # 0.24 and 0.3; NaN and 0.1 by its own change; NaN twice; unknown twice.
    assert rule.high(layers(), changes, {}, 5) == {1, 2, 4, 5, 6, 7}
    assert rule.high(layers(), {**changes, 0: 0.13}, {}, 5) == {0, 1, 2, 4, 5, 6, 7}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("steps", [4, 20])
def test_the_share_of_a_whole_run_is_kept(share: float, steps: int) -> None:
    rule, used = ShareRule(share), 0
    for step in range(steps):
        errors = {index: float((index * 7) % 11) for index in range(20)} if step else {}
        chosen = rule.high(layers(10), dict.fromkeys(range(10), 0.5) if step else {}, errors, steps - step)
        used += len(chosen)
        if step:
            assert all(errors[index] >= errors[other] for index in chosen for other in set(range(20)) - chosen)
        else:
            assert len(chosen) == 20, "nothing is known yet"
    assert used == pytest.approx(max(share, 1 / steps) * steps * 20, abs=0.5)


def test_the_account_goes_on_with_another_transformer() -> None:
    """Of 32 pairs 16 are to be fine: 8 and 3 were, in the other's steps, and 8 in the first of its own."""
    before, after = ShareRule(0.5), ShareRule(0.5)
    known = dict.fromkeys(range(8), 0.5)
    assert len(before.high(layers(), {}, {}, 4)) == 8 and len(before.high(layers(), known, known, 3)) == 3
    after.follow(before)
    assert len(after.high(layers(), {}, {}, 2)) == 8
    assert len(after.high(layers(), known, known, 1)) == 0
    # With a calibration, two of eight steps are all INT8, and two of the other six make four of eight.
    assert (later_share(0.5, 8, 2), later_share(0.5, 8)) == (pytest.approx(2 / 6), pytest.approx(3 / 7))
    assert later_share(0.5, 2, 2) == 0.5


def test_what_is_not_known_takes_from_the_share() -> None:
    """Block 0 was skipped, the error of layer 2 is no number: three of the four go there, one to the largest error."""
    errors = {**dict.fromkeys(range(8), 0.1), 2: math.nan, 6: 0.2}
    assert ShareRule(0.5).high(layers(), {1: 0.5, 2: 0.5, 3: 0.5}, errors, 1) == {0, 1, 2, 6}


def test_what_did_not_run_takes_nothing_from_the_share() -> None:
    """Of 24 pairs 4 do not run, all of them chosen: of the 20 others 10 are to be fine, 4 of the first 8 were.

    Half ran, so that of two steps to come one is expected: of 12 pairs 6, of which 4 were.
    """
    rule, known = ShareRule(0.5), dict.fromkeys(range(8), 0.5)
    assert len(rule.high(layers(), {}, {}, 3)) == 8
    rule.skipped({0, 1, 2, 3})
    assert len(rule.high(layers(), known, known, 2)) == 2
    assert len(rule.high(layers(), known, known, 1)) == 4


def test_numbers_of_parts_of_the_tokens_are_those_of_all() -> None:
    """As where several processes have a part each; one alone is taken as it is."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 128, generator=generator), torch.randn(24, 128, generator=generator)
    x[40:] *= 3
    route = torch.tensor([ACTIVATIONS.index("plain"), 1, ACTIVATIONS.index("nvfp4")])

    def seen(part: torch.Tensor) -> torch.Tensor:
        found, ran = torch.zeros(len(SEEN)), torch.zeros(len(ACTIVATIONS), dtype=torch.int64)
        quantized_linear(part, quantize_nvfp4(weight), None, torch.tensor(1.0), False, route, ran, found)
        return found

    whole, halves = seen(x), [seen(half) for half in x.split(32)]
    for places, joined in (([2, 5], _largest_to_mean), ([3, 6], _quadratic_mean)):
        parts = [half[places].tolist() for half in halves]
        assert _together(parts, joined) == pytest.approx([whole[places[0]].item()], rel=1e-5)
        assert _together(parts[:1], joined) == parts[0][:1] != _together(parts, joined)
    assert math.isnan(_quadratic_mean([(0.5, 0.0), (0.5, 0.0)])), "nothing is no number"
    assert math.isnan(_largest_to_mean([(2.0, 1.0), (math.nan, 1.0)]))
    assert math.isnan(_largest_to_mean([(math.nan, 0.0), (math.nan, 0.0)]))


@pytest.mark.parametrize(("target", "steps"), [(6.0, 6), (7.0, 3)])
def test_the_mean_is_what_was_asked_for(target: float, steps: int) -> None:
    pipe = CASE.build()
    with enable(pipe, quantize="mixed", target_bits=target, emulate=True) as session:
        first = run(pipe, num_inference_steps=steps)
        assert torch.equal(run(pipe, num_inference_steps=steps), first)
    report = last(session)
    assert report["calls"]["nvfp4"] + report["calls"]["int8"] == LAYERS_A_STEP * steps
    assert report["average_bits"] == pytest.approx(target, abs=4 / 40 / steps), "to one layer's formats"
    assert report["calls_by_step"]["int8"][0] == LAYERS_A_STEP, "nothing is known in the first step"
    assert "not calibrated" in str(session.summary())


@pytest.mark.parametrize("steps", [8, 12])
def test_the_mean_is_that_of_both_transformers(steps: int) -> None:
    """The first does not know when the second takes over: what it could not spare yet, the second spares."""
    case = TINY["wan22"]
    pipe = case.build()
    with enable(pipe, quantize="mixed", emulate=True) as session:
        case.run(pipe, num_inference_steps=steps)
        (record,) = session._recorder.runs
    report = last(session)
    first = {name: min(step for *_, which, _, (_, step) in record.events if which == name) for name in case.forwards}
    assert first["transformer"] == 0 < first["transformer_2"] < steps
    assert report["average_bits"] == pytest.approx(6.0, abs=4 / 40 / steps), "to one layer's formats"
    in_nvfp4 = report["calls_by_step"]["nvfp4"]
    assert [step for step in range(steps) if not in_nvfp4[step]] == sorted(first.values()), (
        "each knows nothing at first"
    )


@pytest.mark.parametrize(
    ("settings", "low_and_high"),
    [
        ({"threshold": 0.0}, (0, STEPS)),
        ({"threshold": 1e9}, (STEPS - 1, 1)),
        ({"threshold": 1e9, "low": "int8", "high": "16bit"}, (STEPS - 1, 1)),
    ],
)
def test_thresholds_at_the_ends(settings: dict[str, Any], low_and_high: tuple[int, int]) -> None:
    pipe = CASE.build()
    with enable(pipe, quantize="mixed", emulate=True, **settings) as session:
        run(pipe)
    names = ("int8", "plain") if "low" in settings else ("nvfp4", "int8")
    assert tuple(last(session)["calls"][name] for name in names) == tuple(n * LAYERS_A_STEP for n in low_and_high)


@pytest.mark.parametrize(
    ("family", "target", "settings"),
    [
        ("wan", 6.0, {"static_share": 0.2}),
        # Of the linears of its own blocks too.
        ("wan_vace", 5.0, {}),
        ("hunyuan_video", 6.0, {"quantize_modulation": True}),
    ],
)
def test_the_mean_is_that_of_all_but_modulation(family: str, target: float, settings: dict[str, Any]) -> None:
    case = TINY[family]
    pipe = case.build()
    with enable(pipe, quantize="mixed", target_bits=target, emulate=True, **settings) as session:
        case.run(pipe, num_inference_steps=6)
    report = last(session)
    assert report["average_bits"] == pytest.approx(target, abs=0.02) and report["off_target"] is None
    assert report["modulation_calls"] == report["calls"]["plain"]
    assert (report["modulation_calls"] > 0) == ("quantize_modulation" in settings)
    assert "the mean is not" not in str(session.summary())
    assert ("of modulation, unquantized, apart" in str(session.summary())) == ("quantize_modulation" in settings)


def test_the_mean_is_that_of_what_a_cache_leaves_to_compute() -> None:
    pipe = CASE.build()
    cache = accel.TemporalDeltaCacheConfig(threshold=10.0, max_skips=1, order=0, dense_steps=0.0, dense_final_steps=0.0)
    mixed = accel.MixedPrecisionConfig(target_bits=5.0, purify=False, emulate=True)
    with enable(pipe, cache=cache, quantize=mixed) as session:
        run(pipe, num_inference_steps=8)
    report = last(session)
    assert report["skipped"] == 3 * LAYERS_A_STEP and report["average_bits"] == pytest.approx(5.0, abs=0.02)


@pytest.mark.parametrize(
    ("steps", "settings", "reason"),
    [
        (2, {}, "nothing is known in the first of 2 steps, which gets the finer format"),
        (4, {"static_share": 0.9}, "the linears with a fixed format leave too few to choose for"),
        (
            6,
            {"cache": accel.TemporalDeltaCacheConfig(threshold=10.0, max_skips=1, order=0, dense_steps=0.0)},
            "what is computed behind a skipped step gets the finer format",
        ),
    ],
)
def test_a_mean_that_is_off_has_its_reason(steps: int, settings: dict[str, Any], reason: str) -> None:
    pipe = CASE.build()
    mixed = {"target_bits": 5.0, "emulate": True, "outlier_ratio": 1e9}
    with enable(pipe, quantize="mixed", **mixed, **settings) as session:
        run(pipe, num_inference_steps=steps)
    report = last(session)
    assert report["average_bits"] > 5.1 and reason in report["off_target"]
    assert f"the mean is not 5 bits: {report['off_target']}" in str(session.summary())


def test_without_instructions_the_coarser_format_runs_in_int8() -> None:
    """Bit for bit what is INT8 everywhere; what the rule chose is told beside what ran."""
    pipe = CASE.build()
    with enable(pipe, quantize="mixed", target_bits=8.0) as session:
        high = run(pipe)
    assert "which ran in INT8" not in str(session.summary())
    said = r"NVFP4 activations run in INT8 here: this device \(cpu\) has no instructions for them; emulate=True"
    with pytest.warns(AccelWarning, match="too few to gain time"), pytest.warns(AccelWarning, match=said):
        session = accel.enable(pipe, quantize="mixed", low="nvfp4")
    with session:
        assert torch.equal(run(pipe), high)
    report, calls = last(session), LAYERS_A_STEP * STEPS
    assert report["calls"] == {"plain": 0, "int8": calls, "nvfp4": 0} and report["average_bits"] == 8.0
    assert report["chosen"] == {"plain": 0, "int8": calls // 2, "nvfp4": calls // 2}
    assert report["off_target"] == "NVFP4 was chosen where INT8 ran" and report["activation_scales"] is None
    text = str(session.summary())
    assert "NVFP4 was chosen for 50.0% of the calls, which ran in INT8" in text and "emulated" not in text
    assert "the mean is not 6 bits: NVFP4 was chosen where INT8 ran" in text
    with enable(pipe, quantize="mixed", emulate=True) as session:
        assert not torch.equal(run(pipe), high)
    report = last(session)
    assert report["calls"] == report["chosen"] and report["calls"]["nvfp4"] == calls // 2
    assert "NVFP4 activations are emulated on cpu" in str(session.summary())


@pytest.mark.parametrize(("arch", "native"), [((9, 0), False), ((8, 0), False), ((10, 0), True), ((12, 0), True)])
def test_which_gpus_have_the_instructions(monkeypatch: pytest.MonkeyPatch, arch: tuple[int, int], native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: arch)
    with enable(CASE.build(), quantize="mixed") as session:
        (method,) = session.methods
        assert method.runs_in("nvfp4", torch.device("cuda")) == ("nvfp4" if native else "int8")  # type: ignore[attr-defined]
        assert method.runs_in("plain", torch.device("cuda")) == "plain"  # type: ignore[attr-defined]


def test_a_block_may_be_given_its_input_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a model is spread over several, and a hook inside of the block brings the input over."""
    seen: list[tuple[torch.device, torch.device]] = []

    def statistics(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        seen.append((after.device, before.device))
        return torch.zeros(6)

    monkeypatch.setattr("accel.methods.mixed.delta_statistics", statistics)
    with enable(CASE.build(), quantize="mixed") as session:
        (method,) = session.methods
        assert isinstance(method, MixedPrecision)
        (denoiser,) = method.context.facts.denoisers
        method._measure(0, denoiser.blocks[0], (torch.zeros(2),), (torch.zeros(2, device="meta"),), [])
    assert seen == [(torch.device("meta"), torch.device("meta"))]


@pytest.mark.parametrize(("low", "high", "bits"), [("nvfp4", "int8", 6), ("nvfp4", "16bit", 6), ("int8", "16bit", 12)])
def test_the_bits_that_are_aimed_at_where_none_are_named(low: Any, high: Any, bits: float) -> None:
    config = accel.MixedPrecisionConfig(low=low, high=high)
    family = families()["wan"]
    assert config.resolved(family).target_bits == bits
    assert config.model_copy(update={"threshold": 0.1}).resolved(family).target_bits is None
    with enable(CASE.build(), quantize=config, modules_to_not_convert=["blocks.0", "blocks.1", "blocks.2"]):
        pass


def test_all_high_is_the_fixed_form_on_the_same_weights() -> None:
    """And both guidance branches are given the same formats: a step's count is even in every block."""
    pipe = CASE.build()
    with enable(pipe, quantize="mixed", target_bits=8.0) as session:
        high = run(pipe)
        everywhere = last(session)["calls"]
    assert everywhere["int8"] == LAYERS_A_STEP * STEPS
    with enable(pipe, quantize="mixed", target_bits=6.0, emulate=True) as session:
        assert not torch.equal(run(pipe), high)
        (record,) = session._recorder.runs
    by_branch: dict[str, dict[Any, int]] = {"cond": {}, "uncond": {}}
    for (_, what, _, branch, step), bits in record.events.items():
        by_branch[branch][what, step] = bits
    assert by_branch["cond"] == by_branch["uncond"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": "int8"}, "low='int8' is not below high='int8': set high='16bit'"),
        ({"target_bits": 9.0}, r"does not lie between .* \(nearest: 8\)"),
        ({"target_bits": 3.0}, "not possible"),
        ({"threshold": 0.1, "target_bits": 6.0}, "threshold=0.1 decides alone, and target_bits=6 would do nothing"),
        ({"calibration": "nowhere.json"}, "cannot read the calibration nowhere.json"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AccelError, match=message):
        enable(CASE.build(), quantize=accel.MixedPrecisionConfig(**fields))


def test_beside_the_temporal_delta_cache_a_computed_step_behind_a_skip_is_fine() -> None:
    pipe = CASE.build()
    cache = accel.TemporalDeltaCacheConfig(threshold=10.0, max_skips=1, order=0, dense_steps=0.0, dense_final_steps=0.0)
    settings = {"threshold": 1e9, "outlier_ratio": 1e9, "emulate": True}
    with enable(pipe, cache=cache, quantize=accel.MixedPrecisionConfig(**settings)) as session:
        run(pipe, num_inference_steps=6)
    record = session.summary().to_dict()["runs"][0]
    reused = record["methods"]["tdc"]["reused_by_step"]
    assert [count > 0 for count in reused] == [False, False, True, False, True, False]
    report = last(session)
    # The second step alone has a step behind it that tells.
    assert report["calls_by_step"]["nvfp4"] == [0, LAYERS_A_STEP, 0, 0, 0, 0]
    assert report["calls_by_step"]["int8"] == [LAYERS_A_STEP, 0, 0, LAYERS_A_STEP, 0, LAYERS_A_STEP]
    assert report["skipped"] == 2 * LAYERS_A_STEP
    assert report["average_bits"] == 7.0 and report["average_bits_with_skipped"] == pytest.approx(28 / 6)
    with enable(pipe, cache=cache, quantize=accel.MixedPrecisionConfig(**settings, purify=False)) as session:
        run(pipe, num_inference_steps=6)
    assert last(session)["calls_by_step"]["nvfp4"] == [0] + [0 if r else LAYERS_A_STEP for r in reused[1:]]


@pytest.mark.parametrize("purify", [True, False])
def test_inputs_with_outliers_are_not_quantized_where_a_change_is_kept(purify: bool) -> None:
    """A delta cache of interval 2 captures on every other step; what is seen at one decides at the next."""
    pipe = CASE.build()
    cache = accel.DeltaCacheConfig(interval=2, cached_blocks=0.5, boundary=1.0, dense_steps=0.0)
    mixed = accel.MixedPrecisionConfig(target_bits=8.0, outlier_ratio=1.0, purify=purify)
    with enable(pipe, cache=cache, quantize=mixed) as session:
        first = run(pipe, num_inference_steps=6)
        assert torch.equal(run(pipe, num_inference_steps=6), first)
    report = last(session)
    # The rear two of four blocks, from the second capture on.
    assert report["calls_by_step"].get("plain", [0] * 6) == [0, 0, 40 * purify, 0, 40 * purify, 0]
    assert sum(report["calls"].values()) + report["skipped"] == 6 * LAYERS_A_STEP
    assert session.summary().to_dict()["runs"][0]["methods"]["delta"]["reused"] > 0


def test_beside_sparse_attention() -> None:
    pipe = CASE.build()
    plain = run(pipe)
    with enable(pipe, attention="pisa", quantize="mixed", density=0.5, dense_layers=1) as session:
        result = run(pipe)
    methods = session.summary().to_dict()["runs"][0]["methods"]
    assert methods["pisa"]["sparse"] > 0 and methods["mixed"]["calls"]["int8"] > 0
    assert sum(methods["mixed"]["calls"].values()) == LAYERS_A_STEP * STEPS
    assert torch.isfinite(result).all() and torch.equal(run(pipe), plain)


@pytest.mark.filterwarnings("ignore:.*emulated on:accel.errors.AccelWarning")
def test_a_calibration_is_made_saved_and_held_to(tmp_path: Any) -> None:
    pipe = CASE.build()
    plain = run(pipe)
    found = calibrate_mixed(pipe, [lambda: run(pipe), lambda: run(pipe, seed=1)])
    assert torch.equal(run(pipe), plain)
    assert len(found.lines) == 40 and all(0 <= share <= 1 for share in found.explained.values())
    assert found.quantiles == sorted(found.quantiles) and 0.02 < found.quantiles[0] <= found.quantiles[-1] < 0.3
    path = found.save(tmp_path / "mixed.json")
    assert Calibration.load(path) == found
    with enable(pipe, quantize="mixed", calibration=str(path), emulate=True) as session:
        run(pipe)
    report = last(session)
    assert report["calibrated"] and min(report["calls"]["nvfp4"], report["calls"]["int8"]) > 0
    # The first step, all INT8, is taken off what the others get.
    assert report["average_bits"] == pytest.approx(6.0, abs=0.3)
    # As one that was made with other linears left alone: what it has no line for is not known, however little changes.
    lines = {name: line for name, line in found.lines.items() if ".attn1." not in name}
    part = dataclasses.replace(found, lines=lines).save(tmp_path / "part.json")
    with enable(pipe, quantize="mixed", calibration=str(part), emulate=True) as session:
        run(pipe)
        (method,) = session.methods
        assert isinstance(method, MixedPrecision)
        chosen = method._rule_of_settings("transformer").high(method._all(), dict.fromkeys(range(4), 0.0), {}, 2)
        assert {layer.index for layer in method._all() if layer.name not in lines} <= chosen
    assert last(session)["off_target"] == "the calibration says nothing of some layers, which get the finer format"
    with pytest.raises(AccelError, match="made for rotate=True: calibrate again"):
        enable(pipe, quantize="mixed", calibration=str(path), rotate=False)
    with torch.no_grad():
        pipe.transformer.blocks[0].attn1.to_q.weight += 1
    with pytest.raises(AccelError, match="made for other weights: calibrate again"):
        enable(pipe, quantize="mixed", calibration=str(path))
    with pytest.raises(AccelError, match="without another, and without threshold"):
        calibrate_mixed(pipe, [], config=accel.MixedPrecisionConfig(threshold=0.1))


def test_a_threshold_leaves_the_share_below_it() -> None:
    found = Calibration("", "nvfp4", True, {}, {}, [0.0, 1.0, 2.0, 4.0])
    assert [found.threshold(share) for share in (0.0, 1 / 3, 0.5, 1.0)] == [0.0, 1.0, 1.5, 4.0]
