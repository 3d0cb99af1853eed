"""The delta cache: its schedule, and the analytic results on blocks that are known functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from accel.config import AccelConfig
from accel.methods.delta import DeltaCacheConfig, DeltaSchedule
from accel.session import Session
from tests.toy import ToyDenoiser, ToyPipeline, toy_facts

GENERATOR = torch.Generator().manual_seed(0)
BASE = torch.randn(2, 5, 4, generator=GENERATOR, dtype=torch.float64)
DRIFT = torch.randn(2, 5, 4, generator=GENERATOR, dtype=torch.float64)


def inputs(step: int) -> torch.Tensor:
    return BASE + 0.1 * step * DRIFT


def run(transformer: ToyDenoiser, config: DeltaCacheConfig, **call: Any) -> tuple[dict, dict[str, Any]]:
    pipe = ToyPipeline(transformer)
    session = Session(pipe, toy_facts(pipe), AccelConfig(cache=config))
    session.install()
    with session:
        outputs = pipe(inputs, **call)
    return outputs, session.summary().to_dict()["runs"][0]


def linear(matrix: torch.Tensor) -> Any:
    return lambda hidden: hidden @ matrix


def test_paper_example() -> None:
    """28 blocks, N_c = 21, N = 2, 20 steps, b = 12 remaining: rear blocks before step 8, front blocks after it."""
    schedule = DeltaSchedule(DeltaCacheConfig(dense_steps=0.0), num_blocks=28, num_steps=20)
    plans = [schedule.plan(step) for step in range(20)]
    assert [plan.reuse for plan in plans] == [False, True] * 10
    assert all(plan.capture is not plan.reuse for plan in plans)
    assert {plan.blocks for plan in plans[:8]} == {range(7, 28)}
    assert {plan.blocks for plan in plans[8:]} == {range(21)}
    skipped = sum(len(plan.blocks) for plan in plans if plan.reuse)
    assert 1 - skipped / (20 * 28) == 0.625


@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("steps", [1, 2, 7, 24, 50])
@pytest.mark.parametrize("dense", [(0.0, 0.0), (0.1, 0.0), (0.5, 0.25), (1.0, 0.0)])
def test_schedule_never_reuses_what_was_not_captured(interval: int, steps: int, dense: tuple[float, float]) -> None:
    config = DeltaCacheConfig(interval=interval, boundary=0.4, dense_steps=dense[0], dense_final_steps=dense[1])
    schedule = DeltaSchedule(config, num_blocks=8, num_steps=steps)
    captured, in_a_row = None, 0
    for step in range(steps):
        plan = schedule.plan(step)
        if plan.capture:
            captured = plan.blocks
        in_a_row = in_a_row + 1 if plan.reuse else 0
        if plan.reuse:
            assert captured == plan.blocks
            assert dense[0] * steps <= step < steps - dense[1] * steps
        assert in_a_row < interval
    assert not schedule.reuses(0)
    assert not schedule.reuses(steps), "a step beyond the run must be computed"


def test_constant_offsets_are_exact_to_rounding() -> None:
    offsets = [torch.full((4,), float(k), dtype=torch.float64) for k in range(1, 9)]
    transformer = ToyDenoiser([lambda hidden, c=c: hidden + c for c in offsets])
    outputs, record = run(transformer, DeltaCacheConfig(interval=3, dense_steps=0.0), steps=9)
    assert record["methods"]["delta"]["reused"] > 0
    for (step, branch), output in outputs.items():
        expected = inputs(step) * (1 if branch == "cond" else 2) + sum(offsets)
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_linear_blocks_give_the_analytic_error() -> None:
    """On h -> A h the error of a cached step is (F - I)(h_t' - h_t), carried through the blocks behind."""
    matrices = [torch.eye(4, dtype=torch.float64) + 0.1 * torch.randn(4, 4, generator=GENERATOR, dtype=torch.float64)
                for _ in range(8)]  # fmt: skip
    transformer = ToyDenoiser([linear(m) for m in matrices])
    config = DeltaCacheConfig(interval=2, cached_blocks=0.5, boundary=0.5, dense_steps=0.0)
    outputs, _ = run(transformer, config, steps=8, branches=["cond"])
    front = torch.linalg.multi_dot(matrices[:4])
    rear = torch.linalg.multi_dot(matrices[4:])
    identity = torch.eye(4, dtype=torch.float64)
    for step in range(8):
        error = outputs[step, "cond"] - inputs(step) @ front @ rear
        expected = torch.zeros_like(error)
        if step in (1, 3):
            expected = (inputs(step - 1) - inputs(step)) @ front @ (rear - identity)
        if step in (5, 7):
            expected = (inputs(step - 1) - inputs(step)) @ (front - identity) @ rear
        torch.testing.assert_close(error, expected, rtol=1e-9, atol=1e-12)


def test_branches_never_see_each_other() -> None:
    """The first alone gives the same bits as with the second beside it."""
    matrices = [torch.randn(4, 4, generator=GENERATOR, dtype=torch.float64) for _ in range(4)]
    config = DeltaCacheConfig(dense_steps=0.0)
    transformer = ToyDenoiser([linear(m) for m in matrices])
    both, record = run(transformer, config)
    assert record["branches"] == ["cond", "uncond"]
    alone, _ = run(transformer, config, branches=["cond"])
    for step in range(8):
        assert torch.equal(both[step, "cond"], alone[step, "cond"])
        # The toy's second branch sees doubled inputs, so that a mix-up would show.
        torch.testing.assert_close(both[step, "uncond"], 2 * both[step, "cond"], rtol=1e-12, atol=1e-12)


def test_identical_inputs_give_identical_outputs_with_hints_between_blocks() -> None:
    """What the parent adds between blocks is added once, and afresh, on a cached step too."""
    matrices = [torch.eye(4, dtype=torch.float64) * 1.1 for _ in range(6)]
    strength = 1.0

    def hint(index: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + strength if index in (0, 2, 5) else hidden

    pipe = ToyPipeline(ToyDenoiser([linear(m) for m in matrices], between=hint))
    config = DeltaCacheConfig(cached_blocks=1.0, boundary=1.0, dense_steps=0.0)
    session = Session(pipe, toy_facts(pipe), AccelConfig(cache=config))
    session.install()
    with session:
        outputs = pipe(lambda _step: BASE, steps=4, branches=["cond"])
    for step in (1, 3):
        torch.testing.assert_close(outputs[step, "cond"], outputs[0, "cond"], rtol=1e-12, atol=1e-12)
    # All 6 blocks were reused on both cached steps, and a second hint strength on a cached step counts.
    assert session.summary().to_dict()["runs"][0]["methods"]["delta"]["reused"] == 12

    def changing(step: int) -> torch.Tensor:
        nonlocal strength
        strength = 1.0 if step == 0 else 3.0
        return BASE

    session = Session(pipe, toy_facts(pipe), AccelConfig(cache=config))
    session.install()
    with session:
        outputs = pipe(changing, steps=2, branches=["cond"])
    # The deltas hold no hint, so the output moves by the three changed hints and nothing else.
    torch.testing.assert_close(outputs[1, "cond"], outputs[0, "cond"] + 2.0 * 3, rtol=1e-12, atol=1e-12)


def test_hidden_states_changed_in_place_between_blocks_are_never_captured() -> None:
    def hint(index: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.add_(1.0) if index == 0 else hidden

    transformer = ToyDenoiser([lambda hidden: hidden * 1.5] * 4, between=hint)
    plain = ToyPipeline(transformer)(inputs)
    config = DeltaCacheConfig(cached_blocks=0.5, boundary=0.0, dense_steps=0.0)
    with pytest.warns(UserWarning, match="did nothing: .*changed in place"):
        outputs, record = run(transformer, config)
    assert record["methods"]["delta"]["reused"] == 0
    for key, output in plain.items():
        assert torch.equal(outputs[key], output)


def test_a_block_that_changes_its_input_in_place_runs_plainly() -> None:
    transformer = ToyDenoiser([lambda hidden: hidden.mul_(1.5) + 1.0] * 4)
    plain = ToyPipeline(transformer)(lambda step: inputs(step).clone())
    with pytest.warns(UserWarning, match="did nothing: .*changed in place"):
        outputs, record = run(transformer, DeltaCacheConfig(cached_blocks=1.0, boundary=1.0, dense_steps=0.0))
    assert record["methods"]["delta"]["reused"] == 0
    for key, output in plain.items():
        assert torch.equal(outputs[key], output)


def test_changed_shape_in_the_middle_is_computed() -> None:
    transformer = ToyDenoiser([lambda hidden: hidden * 1.5] * 4)
    pipe = ToyPipeline(transformer)
    session = Session(pipe, toy_facts(pipe), AccelConfig(cache=DeltaCacheConfig(dense_steps=0.0)))
    session.install()
    with session, pytest.warns(UserWarning, match="did nothing: the shape of the tokens changed"):
        outputs = pipe(lambda step: inputs(step)[: 1 + step % 2], steps=4, branches=["cond"])
    for step in range(4):
        torch.testing.assert_close(outputs[step, "cond"], inputs(step)[: 1 + step % 2] * 1.5**4)
    record = session.summary().to_dict()["runs"][0]
    reason = "the shape of the tokens changed"
    assert record["fallbacks"] == [{"method": "delta", "reason": reason, "times": 2}], "one a call that would reuse"


def test_nothing_is_held_after_a_run() -> None:
    pipe = ToyPipeline(ToyDenoiser([lambda hidden: hidden + 1.0] * 4))
    session = Session(pipe, toy_facts(pipe), AccelConfig(cache=DeltaCacheConfig()))
    session.install()
    with session:
        pipe(inputs)
        assert session._methods[0]._deltas._state.values() == []
        report = session.summary().to_dict()["runs"][0]["methods"]["delta"]
    # One delta of 2 x 5 x 4 float64 values for each of the two branches.
    assert report["held_bytes"] == 2 * 2 * 5 * 4 * 8


@pytest.mark.parametrize(
    ("settings", "steps", "reason"),
    [
        ({}, 1, "none of 1 steps is left"),
        ({"dense_final_steps": 1.0}, 8, "dense_final_steps=1.0"),
        ({"cached_blocks": 0.1}, 8, "cached_blocks=0.1 of so few blocks is none"),
    ],
)
def test_doing_nothing_is_said_with_its_reason(settings: dict[str, Any], steps: int, reason: str) -> None:
    with pytest.warns(UserWarning, match=f"delta was on and did nothing: .*{reason}"):
        run(ToyDenoiser([lambda hidden: hidden + 1.0] * 4), DeltaCacheConfig(**settings), steps=steps)


def test_the_dense_steps_are_as_many_as_asked_for() -> None:
    schedule = DeltaSchedule(DeltaCacheConfig(dense_steps=0.25, boundary=1.0), num_blocks=4, num_steps=8)
    assert [schedule.reuses(step) for step in range(8)] == [False, False, True, False, True, False, True, False]


def test_a_reused_change_is_never_older_than_the_interval() -> None:
    schedule = DeltaSchedule(DeltaCacheConfig(interval=3, boundary=0.5), num_blocks=4, num_steps=24)
    for step in range(24):
        plan = schedule.plan(step)
        if plan.reuse:
            assert 0 < step - plan.since < 3
            assert schedule.plan(plan.since).capture
            assert schedule.plan(plan.since).blocks == plan.blocks
