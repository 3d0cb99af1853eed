"""What holds for every cache of block changes, whatever its rule."""

from __future__ import annotations

import pytest
import torch

import accel
from accel.config import AccelConfig
from accel.methods.base import MethodConfig
from accel.methods.delta import DeltaCacheConfig
from accel.methods.tdc import TemporalDeltaCacheConfig
from accel.session import Session
from tests.tiny_pipelines import TINY
from tests.toy import Function, ToyDenoiser, ToyPipeline, toy_facts

BASE, DRIFT = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DELTA = DeltaCacheConfig(dense_steps=0.0)
TDC = TemporalDeltaCacheConfig(threshold=0.5, max_skips=2)


def inputs(step: int) -> torch.Tensor:
    return BASE + 0.1 * step * DRIFT


def enabled(config: MethodConfig, first: Function = lambda hidden: hidden + 1.0) -> tuple[ToyPipeline, Session]:
    """A pipeline of constant changes, which a cache may add as often as it likes, behind its `first` block."""
    pipe = ToyPipeline(ToyDenoiser([first, *[lambda hidden: hidden + 1.0] * 3]))
    session = Session(pipe, toy_facts(pipe), AccelConfig(cache=config))
    session.install()
    return pipe, session


@pytest.mark.parametrize("config", [DELTA, TDC], ids=["delta", "tdc"])
@pytest.mark.parametrize("off", [(3,), (4,), (5, 6), (3, 4, 5), (3, 4, 5, 6), (2, 3, 4, 5), (0, 1)])
def test_a_branch_that_pauses_never_reuses_what_it_does_not_have(config: MethodConfig, off: tuple[int, ...]) -> None:
    """Guidance that is off for some steps: constant changes stay exact, so nothing was added twice or left out."""
    pipe, session = enabled(config)
    outputs = []
    with session, pipe.progress_bar(total=12):
        for step in range(12):
            timestep, hidden = torch.tensor(12.0 - step), inputs(step)
            for _ in ("cond", "uncond") if step not in off else ("cond",):
                outputs.append((hidden, pipe.transformer(hidden_states=hidden, timestep=timestep)))
    for hidden, output in outputs:
        torch.testing.assert_close(output, hidden + 4.0, rtol=1e-12, atol=1e-12)
    assert session.summary().to_dict()["runs"][0]["methods"][config.method]["reused"] > 0


@pytest.mark.parametrize(
    ("config", "pattern", "steps"), [(DELTA, "csccccsc", 8), (TDC, "cccscsscsscc", 12)], ids=["delta", "tdc"]
)
def test_a_demand_on_the_board_makes_a_step_computed(config: MethodConfig, pattern: str, steps: int) -> None:
    """Another method says that a search is due; the cache does not know who, and computes and captures afresh."""
    pipe, session = enabled(config)

    def search(proceed, args, kwargs):
        if session._clock.now.step == 4:
            session._board.demand_compute("search", "the map is due")
        return proceed(*args, **kwargs)

    session._hooks.add(pipe.transformer.blocks[0], search)
    with session:
        pipe(inputs, steps=steps)
    run = session.summary().to_dict()["runs"][0]
    assert "".join("cs"[count > 0] for count in run["methods"][config.method]["reused_by_step"]) == pattern
    assert run["fallbacks"] == [{"method": config.method, "reason": "search: the map is due", "times": 2}]


@pytest.mark.parametrize(
    ("config", "at", "pattern"), [(DELTA, 3, "csccccscscsc"), (TDC, 4, "cccsccsscssc")], ids=["delta", "tdc"]
)
def test_tokens_of_another_shape_are_captured_anew(config: MethodConfig, at: int, pattern: str) -> None:
    """As behind a callback that gives up guidance, in a step that was to reuse: from there on it is as at the start."""
    pipe, session = enabled(config)

    def halved(step: int) -> torch.Tensor:
        return inputs(step)[: 1 if step >= at else 2]

    with session:
        outputs = pipe(halved, steps=12)
    for (step, branch), output in outputs.items():
        expected = halved(step) * (1 if branch == "cond" else 2) + 4.0
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    run = session.summary().to_dict()["runs"][0]
    assert "".join("cs"[count > 0] for count in run["methods"][config.method]["reused_by_step"]) == pattern
    reason = "the shape of the tokens changed"
    assert run["fallbacks"] == [{"method": config.method, "reason": reason, "times": 2}], "once a call"


@pytest.mark.parametrize("config", [DELTA, TDC], ids=["delta", "tdc"])
def test_every_step_says_which_blocks_were_computed_and_which_reused(config: MethodConfig) -> None:
    pipe, session = enabled(config)
    with session:
        pipe(inputs)
    run = session.summary().to_dict()["runs"][0]
    branches = run["blocks"][config.method]["transformer"]
    assert set(branches) == {"cond", "uncond"}
    numbers = {"": 0, "0-2": 3, "1-3": 3, "0": 1, "3": 1, "0-3": 4}
    for said in branches.values():
        counts = [[numbers[words] for words in said[what]] for what in ("computed", "reused")]
        assert [sum(both) for both in zip(*counts, strict=True)] == [4] * 8
        assert [2 * count for count in counts[1]] == run["methods"][config.method]["reused_by_step"]


@pytest.mark.parametrize(("units", "texts"), [(1, 0), (2, 1)])
def test_a_text_that_nothing_needs_behind_a_unit_is_not_held(units: int, texts: int) -> None:
    """The last block of Stable Diffusion 3 returns none; the unit before it still needs its own."""
    case = TINY["sd35"]
    pipe = case.build()
    with accel.enable(pipe, cache=TemporalDeltaCacheConfig(threshold=10.0, units=units)) as session:
        case.run(pipe)
    report = session.summary().to_dict()["runs"][0]["methods"]["tdc"]
    # Both halves of the guidance, 128 channels in float32, a change and its slope.
    tokens = units * case.tokens + texts * case.text_tokens
    assert report["reused"] > 0 and report["held_bytes"] == 2 * tokens * 128 * 4 * 2


UNLIKE = "a block changes the shape, the dtype or the device of its tokens, and is computed"


@pytest.mark.parametrize("config", [DELTA, TDC], ids=["delta", "tdc"])
def test_a_block_that_makes_other_tokens_is_computed_and_those_behind_it_are_reused(config: MethodConfig) -> None:
    pipe, session = enabled(config, lambda hidden: hidden.float() + 1.0)
    with session:
        outputs = pipe(lambda step: inputs(step).bfloat16())
    for (step, branch), output in outputs.items():
        expected = inputs(step).bfloat16().float() * (1 if branch == "cond" else 2) + 4.0
        torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-5)
    run = session.summary().to_dict()["runs"][0]
    assert run["methods"][config.method]["reused"] > 0 and pipe.transformer.blocks[0].calls == 2 * 8
    assert [fallback["reason"] for fallback in run["fallbacks"]] == [UNLIKE]


def test_autocast_in_a_model_that_widens_its_tokens() -> None:
    """The first block of LTX-Video is given bfloat16, and adds what a float32 table has scaled."""
    case = TINY["ltx"]
    pipe = case.build()
    with torch.autocast("cpu", torch.bfloat16):
        plain = case.run(pipe)
        with accel.enable(pipe, cache=TemporalDeltaCacheConfig(threshold=10.0, max_skips=2)) as session:
            found = case.run(pipe)
    run = session.summary().to_dict()["runs"][0]
    assert [fallback["reason"] for fallback in run["fallbacks"]] == [UNLIKE]
    said = run["blocks"]["tdc"]["transformer"]["cond_uncond"]
    assert {(said["computed"][step], said["reused"][step]) for step in range(8)} == {("0-3", ""), ("0", "1-3")}
    assert (found - plain).norm() < 0.2 * plain.norm()
