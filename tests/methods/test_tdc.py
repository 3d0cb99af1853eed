"""The temporal delta cache: what it skips, and the analytic results on blocks that are known functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from accel.config import AccelConfig
from accel.methods.tdc import TemporalDeltaCacheConfig
from accel.pipelines.facts import Guidance
from accel.session import Session
from tests.toy import ToyDenoiser, ToyPipeline, toy_facts

GENERATOR = torch.Generator().manual_seed(0)
BASE = torch.randn(2, 5, 4, generator=GENERATOR, dtype=torch.float64)
DRIFT = torch.randn(2, 5, 4, generator=GENERATOR, dtype=torch.float64)
MATRICES = [
    torch.eye(4, dtype=torch.float64) + 0.1 * torch.randn(4, 4, generator=GENERATOR, dtype=torch.float64)
    for _ in range(6)
]
PUBLISHED: dict[str, Any] = {"units": "blocks", "order": 0, "max_skips": 2, "early": 0.0}


def straight(step: int) -> torch.Tensor:
    return BASE + 0.1 * step * DRIFT


def curved(step: int) -> torch.Tensor:
    return BASE + 0.01 * step * step * DRIFT


def linear() -> ToyDenoiser:
    return ToyDenoiser([lambda hidden, m=matrix: hidden @ m for matrix in MATRICES])


def run(
    transformer: ToyDenoiser, inputs: Any = straight, call: dict[str, Any] | None = None, **settings: Any
) -> tuple[dict, dict[str, Any]]:
    pipe = ToyPipeline(transformer)
    session = Session(pipe, toy_facts(pipe), AccelConfig(cache=TemporalDeltaCacheConfig(**settings)))
    session.install()
    with session:
        outputs = pipe(inputs, **(call or {}))
    return outputs, session.summary().to_dict()["runs"][0]


def skipped(record: dict[str, Any]) -> str:
    """The steps, s for one in which anything was reused and c for a computed one."""
    return "".join("cs"[count > 0] for count in record["methods"]["tdc"]["reused_by_step"])


@pytest.mark.parametrize("held", ["model", "float8"])
def test_a_change_that_slows_down_is_continued_rightly(held: str) -> None:
    """Halved from step to step: the next move is half of the last one, which a whole slope overshoots."""
    now = [1.0]

    def inputs(step: int) -> torch.Tensor:
        now[0] = 0.5**step
        return straight(step)

    functions = [lambda hidden: hidden + now[0] * torch.ones_like(hidden)] * 3
    settings: dict[str, Any] = {"threshold": 10.0, "early": 0.0, "dense_final_steps": 0.0, "delta_dtype": held}
    outputs, record = run(ToyDenoiser(functions), inputs, {"steps": 8}, max_skips=1, **settings)
    assert skipped(record) == "cccscscs"
    for (step, branch), output in outputs.items():
        expected = straight(step) * (1 if branch == "cond" else 2) + 3 * 0.5**step
        if skipped(record)[step] == "c" or step == 3:
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-12 if held == "model" else 1e-6)
    # From step 4 on the line spans two steps, over which the change falls to a quarter: 3/2 for 1/2 of it, by step.
    missed = outputs[5, "cond"] - straight(5) - 3 * 0.5**5
    slope, reach = 3 * (0.5**4 - 0.5**2) / 2, (0.5**4 - 0.5**2) / (2 * (0.5**2 - 0.5**1))
    expected = torch.full_like(missed, 3 * 0.5**4 + reach * slope - 3 * 0.5**5)
    torch.testing.assert_close(missed, expected, rtol=0, atol=1e-12 if held == "model" else 1e-6)


def test_the_pattern_of_the_paper() -> None:
    """Constant changes: computed until a drift is known, then two steps skipped for each computed one."""
    transformer = ToyDenoiser([lambda hidden: hidden + 1.0] * 4)
    call = {"steps": 12}
    outputs, record = run(transformer, call=call, threshold=0.1, dense_steps=0.0, dense_final_steps=0.01, **PUBLISHED)
    assert skipped(record) == "ccsscsscsscc"
    for (step, branch), output in outputs.items():
        expected = straight(step) * (1 if branch == "cond" else 2) + 4.0
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("units", [1, 2, 4, "blocks", "probe"])
@pytest.mark.parametrize("delta_dtype", ["model", "bfloat16", "float8"])
def test_constant_changes_are_exact_to_the_rounding_of_how_they_are_held(units: Any, delta_dtype: str) -> None:
    transformer = ToyDenoiser([lambda hidden: hidden + 1.0] * 4)
    outputs, record = run(transformer, units=units, delta_dtype=delta_dtype, threshold=0.5)
    assert "s" in skipped(record)
    bound = {"model": 1e-12, "bfloat16": 1e-2, "float8": 0.07}[delta_dtype] * 4
    for (step, branch), output in outputs.items():
        expected = straight(step) * (1 if branch == "cond" else 2) + 4.0
        torch.testing.assert_close(output, expected, rtol=0, atol=bound)


def test_changes_along_a_line_are_exact_with_a_slope_alone() -> None:
    """Linear blocks on inputs along a line change along a line: no error at order 1, the analytic one at order 0."""
    matrix = torch.linalg.multi_dot(MATRICES)
    plain = {step: straight(step) @ matrix for step in range(8)}
    call = {"branches": ["cond"]}
    outputs, record = run(linear(), call=call, threshold=0.3)
    assert skipped(record) == "cccssscc"
    for step, expected in plain.items():
        torch.testing.assert_close(outputs[step, "cond"], expected, rtol=1e-10, atol=1e-10)

    outputs, record = run(linear(), call=call, threshold=10.0, order=0, max_skips=2, dense_steps=0.0)
    assert skipped(record) == "ccsscssc"
    identity = torch.eye(4, dtype=torch.float64)
    for step, since in ((2, 1), (3, 1), (5, 4), (6, 4)):
        error = (straight(since) - straight(step)) @ (matrix - identity)
        torch.testing.assert_close(outputs[step, "cond"] - plain[step], error, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("at", "pattern"),
    [
        pytest.param(5, "cccssccsssc", id="in-the-middle"),  # It is in the slope that step 6 compares with, too.
        pytest.param(9, "cccssscsscc", id="at-the-last-step-that-may-be-skipped"),
    ],
)
def test_a_probe_decides_by_what_it_finds_in_the_same_step(at: int, pattern: str) -> None:
    """The first block's change stands still but for a jump at one step, which the other blocks cannot see coming."""
    jump = [0.0]

    def inputs(step: int) -> torch.Tensor:
        jump[0] = 5.0 if step >= at else 1.0
        return straight(step)

    functions = [lambda hidden: hidden + jump[0], *[lambda hidden: hidden + 2.0] * 3]
    transformer = ToyDenoiser(functions)
    outputs, record = run(transformer, inputs, {"steps": 11}, units="probe", threshold=0.5, dense_final_steps=0.05)
    assert skipped(record) == pattern
    for (step, branch), output in outputs.items():
        expected = straight(step) * (1 if branch == "cond" else 2) + 6.0 + (5.0 if step >= at else 1.0)
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    assert transformer.blocks[0].calls == 2 * 11 and transformer.blocks[1].calls == 2 * pattern.count("c")


def test_the_decision_is_the_analytic_one() -> None:
    """Along a parabola the drift of the line is known in closed form; the thresholds just under and over it decide."""
    change = torch.linalg.multi_dot(MATRICES) - torch.eye(4, dtype=torch.float64)
    deltas = [curved(step) @ change for step in range(3)]
    missed = deltas[2] - (2 * deltas[1] - deltas[0])
    expected = (missed.square().sum() / deltas[2].square().sum()).sqrt().item()
    for factor, pattern in ((1.01, "cccs"), (4.99, "cccsc"), (5.01, "cccss")):
        _, record = run(linear(), curved, {"branches": ["cond"]}, threshold=factor * expected, early=0.0)
        assert skipped(record).startswith(pattern)
    weight = (0.9 / (3 / 8)) ** 2
    for factor, pattern in ((0.99, "cccc"), (1.01, "cccs")):
        _, record = run(linear(), curved, {"branches": ["cond"]}, threshold=factor * weight * expected, early=0.9)
        assert skipped(record).startswith(pattern)
    with pytest.warns(UserWarning, match="no change was steady enough"):
        run(linear(), curved, {"steps": 5, "branches": ["cond"]}, threshold=0.99 * expected, early=0.0)


@pytest.mark.parametrize("units", [1, 3, "blocks", "probe"])
@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"max_skips": 0}])
def test_nothing_to_skip_gives_the_plain_bits(units: Any, settings: dict[str, Any]) -> None:
    plain = ToyPipeline(linear())(straight)
    outputs, record = run(linear(), units=units, **settings)
    assert record["methods"]["tdc"]["reused"] == 0 and record["notes"] == []
    assert all(torch.equal(outputs[key], output) for key, output in plain.items())


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("branches", [["cond", "uncond"], ["cond"]])
def test_branches_decide_together_and_add_their_own(branches: Sequence[str], order: int) -> None:
    """The toy's second branch sees doubled inputs: its result is twice the first one's, bit for bit."""
    settings: dict[str, Any] = {"threshold": 0.3, "order": order, "units": 2}
    outputs, record = run(linear(), call={"branches": branches}, **settings)
    alone, _ = run(linear(), call={"branches": ["cond"]}, **settings)
    assert "s" in skipped(record)
    for step in range(8):
        assert torch.equal(outputs[step, "cond"], alone[step, "cond"])
        if "uncond" in branches:
            assert torch.equal(outputs[step, "uncond"], 2 * outputs[step, "cond"])


@pytest.mark.parametrize(("settings", "off"), [({"order": 1}, (5, 8, 11, 14)), (PUBLISHED, (4, 7, 10, 13))])
def test_a_branch_that_pauses_reuses_nothing_older_than_the_others_do(
    settings: dict[str, Any], off: tuple[int, ...]
) -> None:
    """The second branch is away in every step in which the first one computes, along a curve."""
    pipe = ToyPipeline(linear())
    config = TemporalDeltaCacheConfig(**{**settings, "threshold": 100.0, "max_skips": 2, "early": 0.0})
    session = Session(pipe, toy_facts(pipe), AccelConfig(cache=config))
    session.install()
    with session, pipe.progress_bar(total=16):
        for step in range(16):
            timestep = torch.tensor(16.0 - step)
            for _ in ("cond",) if step in off else ("cond", "uncond"):
                pipe.transformer(hidden_states=curved(step), timestep=timestep)
    record = session.summary().to_dict()["runs"][0]
    blocks = record["blocks"]["tdc"]["transformer"]
    assert all(blocks["cond"]["computed"][step] == "0-5" for step in off), "else nothing is tested"
    for said in blocks.values():
        computed = -1
        for step, words in enumerate(said["reused"]):
            computed = step if said["computed"][step] else computed
            assert not words or 0 < step - computed <= config.max_skips
        assert any(said["reused"])
    reason = "transformer has nothing fresh to reuse for uncond"
    assert [found["reason"] for found in record["fallbacks"]] == [reason]


def test_a_change_that_is_not_finite_is_never_reused() -> None:
    broken = {4}

    def function(hidden: torch.Tensor) -> torch.Tensor:
        return hidden + (math.nan if calls[0] in broken else 1.0)

    calls = [0]

    def inputs(step: int) -> torch.Tensor:
        calls[0] = step
        return straight(step)

    outputs, record = run(
        ToyDenoiser([function] * 4), inputs, {"steps": 12, "branches": ["cond"]}, threshold=0.5, max_skips=1
    )
    # The change of step 4 is in the slope that step 5 finds and in what step 6 compares with.
    assert skipped(record) == "cccsccccscsc"
    assert [step for (step, _), output in outputs.items() if not output.isfinite().all()] == [4]
    assert record["methods"]["tdc"]["non_finite"] > 0


def test_hints_between_blocks_are_added_afresh() -> None:
    """What the parent adds between blocks is in no delta, so identical inputs give identical outputs."""

    def hint(index: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + 1.0 if index in (0, 2) else hidden

    transformer = ToyDenoiser([lambda hidden, m=matrix: hidden @ m for matrix in MATRICES], between=hint)
    outputs, record = run(transformer, lambda _step: BASE, {"branches": ["cond"]})
    assert skipped(record) == "cccssscc" and record["methods"]["tdc"]["reused"] == 3 * 6
    for step in range(8):
        torch.testing.assert_close(outputs[step, "cond"], outputs[0, "cond"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("limit", "units", "held"),
    [(None, 4, 4), (math.inf, 4, 4), (1e-6 * 5.2, 4, 4), (1e-6 * 3.0, 2, 2), (1e-6 * 1.3, 1, 1)],
)
def test_the_memory_limit_joins_units(limit: float | None, units: int, held: int) -> None:
    """A unit is 2 x 5 x 4 values of 8 bytes, with a slope, for two branches: 1,280 bytes."""
    transformer = ToyDenoiser([lambda hidden: hidden + 1.0] * 4)
    _, record = run(transformer, units="blocks", memory_limit=limit, threshold=0.5)
    assert record["methods"]["tdc"]["units"] == units
    assert record["methods"]["tdc"]["held_bytes"] == held * 1280
    assert bool(record["notes"]) is (units < 4)


@pytest.mark.parametrize(("limit", "kept"), [(None, 3), (2.6e-6, 2), (1.3e-6, 1)])
def test_the_memory_limit_holds_where_a_unit_has_several_changes(limit: float | None, kept: int) -> None:
    """Hints cut the one unit into blocks 0, 1 to 2 and 3 to 5; a change takes 1,280 bytes for two branches."""

    def hint(index: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + 1.0 if index in (0, 2) else hidden

    transformer = ToyDenoiser([lambda hidden, m=matrix: hidden @ m for matrix in MATRICES], between=hint)
    outputs, record = run(transformer, lambda _step: BASE, memory_limit=limit)
    report = record["methods"]["tdc"]
    assert report["held_bytes"] == kept * 1280
    assert skipped(record) == "cccssscc" and report["reused"] == 3 * 2 * (0, 1, 3, 6)[kept]
    line = f"memory_limit={limit} leaves no room for the changes of some blocks, which are computed"
    assert [found["reason"] for found in record["fallbacks"]] == ([] if limit is None else [line])
    for (_, branch), output in outputs.items():
        torch.testing.assert_close(output, outputs[0, branch], rtol=1e-12, atol=1e-12)


def test_the_memory_limit_is_for_one_branch_in_a_run_without_guidance() -> None:
    """A unit is 640 bytes then: four fit, where two would for two branches."""
    pipe = ToyPipeline(ToyDenoiser([lambda hidden: hidden + 1.0] * 4))
    pipe.do_classifier_free_guidance = False  # type: ignore[attr-defined]
    config = TemporalDeltaCacheConfig(units="blocks", memory_limit=2.6e-6, threshold=0.5)
    session = Session(pipe, toy_facts(pipe), AccelConfig(cache=config))
    session.install()
    with session:
        pipe(straight, branches=["cond"])
    record = session.summary().to_dict()["runs"][0]
    assert record["methods"]["tdc"]["units"] == 4 and record["methods"]["tdc"]["held_bytes"] == 4 * 640
    assert not record["notes"]


@pytest.mark.parametrize("late", [False, True], ids=["asked-for", "from-the-middle-on"])
def test_the_memory_limit_counts_the_branches_that_are_seen(late: bool) -> None:
    """True guidance on a model that is distilled, and a branch that comes later: one branch is expected, two come."""
    pipe = ToyPipeline(ToyDenoiser([lambda hidden: hidden + 1.0] * 4))
    facts = replace(toy_facts(pipe), guidance=Guidance("distilled", ("cond", "uncond"), named=False))
    config = TemporalDeltaCacheConfig(units="blocks", memory_limit=3e-6, threshold=0.5)
    session = Session(pipe, facts, AccelConfig(cache=config))
    session.install()
    with session, pipe.progress_bar(total=24):
        for step in range(24):
            timestep, hidden = torch.tensor(24.0 - step), straight(step)
            for _ in ("cond",) if late and step < 6 else ("cond", "uncond"):
                output = pipe.transformer(hidden_states=hidden, timestep=timestep)
                torch.testing.assert_close(output, hidden + 4.0, rtol=1e-12, atol=1e-12)
    record = session.summary().to_dict()["runs"][0]
    # Four blocks of 640 bytes fit for one branch, and two units for two.
    assert 2560 <= record["methods"]["tdc"]["held_bytes"] <= 3000
    assert record["notes"] == ["tdc: memory_limit=3e-06 holds 2 of 4 units of 1.28e-06 GB each"]
    blocks = record["blocks"]["tdc"]["transformer"]
    assert blocks["cond"]["reused"][-8:] == blocks["uncond"]["reused"][-8:] and "0-3" in blocks["cond"]["reused"][-8:]


def test_every_run_tells_its_own_units() -> None:
    """Two samples at once take so much memory that units are joined; the run before and the one after are not."""
    pipe = ToyPipeline(ToyDenoiser([lambda hidden: hidden + 1.0] * 4))
    config = TemporalDeltaCacheConfig(units="blocks", memory_limit=1e-6 * 5.2, threshold=0.5)
    session = Session(pipe, toy_facts(pipe), AccelConfig(cache=config))
    session.install()
    with session:
        for copies in (1, 2, 1):
            pipe(lambda step, copies=copies: straight(step).repeat(copies, 1, 1))
    runs = session.summary().to_dict()["runs"]
    assert [run["methods"]["tdc"]["units"] for run in runs] == [4, 2, 4]


@pytest.mark.parametrize(
    ("settings", "hints", "branches", "words"),
    [
        ({}, (), 2, "6.4 MB at most, in 1 unit of 3.2 MB (a change and its slope) for each of 2 branches"),
        ({"units": 2, "order": 0}, (), 1, "3.2 MB at most, in 2 units of 1.6 MB (a change)"),
        ({}, (0, 2), 2, "19.2 MB at most, in 1 unit of 9.6 MB (3 changes and their slopes) for each of 2 branches"),
        ({"units": 2}, (0,), 1, "9.6 MB at most, in 2 units of 3.2 to 6.4 MB (1 to 2 changes and their slopes)"),
    ],
)
def test_the_summary_says_how_what_is_held_adds_up(
    settings: dict[str, Any], hints: tuple[int, ...], branches: int, words: str
) -> None:
    """A change is 2 x 25,000 x 4 values of 8 bytes."""

    def hint(index: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + 1.0 if index in hints else hidden

    pipe = ToyPipeline(ToyDenoiser([lambda hidden: hidden + 1.0] * 4, between=hint))
    session = Session(pipe, toy_facts(pipe), AccelConfig(cache=TemporalDeltaCacheConfig(threshold=0.5, **settings)))
    session.install()
    with session:
        pipe(lambda step: straight(step).repeat(1, 5000, 1), branches=("cond", "uncond")[:branches])
    line = next(line for line in str(session.summary()).splitlines() if "tdc: reused" in line)
    assert line.endswith(f", holding {words}")
    report = session.summary().to_dict()["runs"][0]["methods"]["tdc"]
    assert (report["units"], report["held_branches"]) == (settings.get("units", 1), branches)
    assert f"{report['unit_bytes'] / 1e6:.1f} MB (" in words, "that of the largest"


@pytest.mark.parametrize(("delta_dtype", "size"), [("model", 320), ("bfloat16", 80), ("float8", 40 + 10 * 4)])
def test_what_is_held_is_what_is_reported(delta_dtype: str, size: int) -> None:
    transformer = ToyDenoiser([lambda hidden: hidden + 1.0] * 4)
    _, record = run(transformer, threshold=0.5, delta_dtype=delta_dtype, memory_limit=2 * 2 * size / 1e9)
    assert record["methods"]["tdc"]["held_bytes"] == 2 * 2 * size, "delta and slope, two branches"


@pytest.mark.parametrize(
    ("settings", "steps", "reason"),
    [
        ({}, 4, "none of 4 steps is left"),
        ({"dense_final_steps": 1.0}, 8, "dense_final_steps=1.0"),
        ({"threshold": 1e-9}, 8, "no change was steady enough for threshold=1e-09"),
        ({"memory_limit": 1e-9}, 8, "memory_limit=1e-09 holds no unit"),
    ],
)
def test_doing_nothing_is_said_with_its_reason(settings: dict[str, Any], steps: int, reason: str) -> None:
    with pytest.warns(UserWarning, match=f"tdc was on and did nothing: .*{reason}"):
        run(linear(), curved, {"steps": steps}, **settings)


def test_a_run_that_breaks_off_leaves_the_next_one_clean() -> None:
    pipe = ToyPipeline(linear())
    session = Session(pipe, toy_facts(pipe), AccelConfig(cache=TemporalDeltaCacheConfig(threshold=0.3)))
    session.install()
    with session:
        fresh = pipe(straight)

        def breaking(step: int) -> torch.Tensor:
            if step == 4:
                raise RuntimeError("stop")
            return 3 * straight(step)

        with pytest.raises(RuntimeError, match="stop"):
            pipe(breaking)
        again = pipe(straight)
    assert all(torch.equal(again[key], output) for key, output in fresh.items())


def test_few_steps_are_said_to_bring_little() -> None:
    transformer = ToyDenoiser([lambda hidden: hidden + 1.0] * 4)
    for steps, notes in ((7, ["tdc brings little with fewer than 8 steps: 7 here"]), (8, [])):
        _, record = run(transformer, call={"steps": steps}, threshold=0.5)
        assert record["notes"] == notes
