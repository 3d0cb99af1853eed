"""`enable`, `disable` and `summary`: what they refuse, and that a refusal changes nothing."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import threading
import time
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import accel
from accel.methods.delta import DeltaCache
from tests.conformance.snapshot import snapshot
from tests.tiny_pipelines import TINY


@pytest.fixture(scope="module")
def pipe() -> Any:
    return TINY["wan"].build()


def compiled_whole(pipe: Any) -> Any:
    pipe.transformer.compile(backend="eager")
    return pipe


def wrapped_by_compile(pipe: Any) -> Any:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    return pipe


def with_a_diffusers_cache(pipe: Any) -> Any:
    from diffusers import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    return pipe


def without_blocks(pipe: Any) -> Any:
    del pipe.transformer.blocks
    return pipe


def with_other_blocks(pipe: Any) -> Any:
    pipe.transformer.blocks[2] = torch.nn.Identity()
    return pipe


def with_another_transformer(pipe: Any) -> Any:
    pipe.transformer = torch.nn.Linear(2, 2)
    return pipe


def without_attention(pipe: Any) -> Any:
    del pipe.transformer.blocks[1].attn1
    return pipe


def without_transformer(pipe: Any) -> Any:
    pipe.transformer = None
    return pipe


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (compiled_whole, "compile_repeated_blocks()"),
        (wrapped_by_compile, "compile_repeated_blocks()"),
        (with_a_diffusers_cache, "disable_cache()"),
        (without_blocks, "no module list `blocks`"),
        (without_attention, "transformer.blocks.1 has no `attn1`, which the facts of the family wan name"),
        (with_other_blocks, "blocks.2 is Identity(input); the facts of the family wan expect WanTransformerBlock"),
        (with_another_transformer, "pipe.transformer is a Linear"),
        (without_transformer, "has no transformer or transformer_2"),
    ],
)
def test_pipelines_that_cannot_be_accelerated(change: Any, fragment: str) -> None:
    pipe = change(TINY["wan"].build())
    before = snapshot(pipe)
    with pytest.raises(accel.AccelError) as refusal:
        accel.enable(pipe, cache="delta")
    assert fragment in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert snapshot(pipe) == before


def test_unknown_families_are_told_what_is_known_and_how_to_add_one() -> None:
    class UnheardOfPipeline:
        pass

    with pytest.raises(accel.AccelError, match=r"UnheardOfPipeline is of no family.*wan.*accel list.*CONTRIB") as found:
        accel.enable(UnheardOfPipeline(), cache="delta")
    assert len(str(found.value)) < 450, "a line that can be read"
    for thing in (None, 3, "demo", SimpleNamespace()):
        with pytest.raises(accel.AccelError, match="is of no family"):
            accel.enable(thing, cache="delta")


def test_a_subclass_of_a_known_pipeline_is_known(pipe: Any) -> None:
    class Mine(type(pipe)):
        pass

    mine = Mine(**pipe.components)
    mine.set_progress_bar_config(disable=True)
    with accel.enable(mine, cache="delta") as session:
        TINY["wan"].run(mine)
    assert session.summary().to_dict()["runs"][0]["methods"]["delta"]["reused"] > 0


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"preset_or_config": "speedy"}, "quality, balanced, fast"),
        ({"cache": "tda"}, "'delta'"),
        ({"attention": "piza"}, "attention has no method 'piza'"),
        ({"cache": "delta", "interval": 0}, "nearest: 1"),
        (
            {"cache": "delta", "density": 0.5},
            "'density' is a setting of adaspa and flashblock and pisa, none of which is on: add attention='adaspa'",
        ),
        ({"cache": "none", "interval": 2}, "add cache='delta'"),
    ],
)
def test_refused_settings_change_nothing(pipe: Any, arguments: dict[str, Any], fragment: str) -> None:
    before = snapshot(pipe)
    with pytest.raises(accel.AccelError) as refusal:
        accel.enable(pipe, **arguments)
    assert fragment in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert snapshot(pipe) == before


def test_enabling_twice_is_refused_and_the_first_stays(pipe: Any) -> None:
    with accel.enable(pipe, cache="delta") as session:
        with pytest.raises(accel.AccelError, match=r"accelerated already.*accel.disable\(pipe\)"):
            accel.enable(pipe, cache="delta")
        TINY["wan"].run(pipe)
        assert session.summary().to_dict()["runs"][0]["methods"]["delta"]["reused"] > 0
        assert accel.summary(pipe).to_dict()["runs"] == session.summary().to_dict()["runs"]


def test_disable_by_pipeline_twice_and_without_enable(pipe: Any) -> None:
    before = snapshot(pipe)
    accel.disable(pipe)
    session = accel.enable(pipe)
    accel.disable(pipe)
    accel.disable(pipe)
    assert not session.enabled
    assert snapshot(pipe) == before
    with pytest.raises(accel.AccelError, match="not enabled"):
        accel.summary(pipe)


def test_a_session_that_is_over_is_not_entered_again(pipe: Any) -> None:
    """Else the block would run plainly under the name of an acceleration."""
    session = accel.enable(pipe, cache="delta")
    with session:
        TINY["wan"].run(pipe)
    with pytest.raises(accel.AccelError, match=r"this session is over.*call accel\.enable again"), session:
        pass
    assert len(session.summary().to_dict()["runs"]) == 1


def test_methods_off_is_plain_and_said_so(pipe: Any) -> None:
    plain = TINY["wan"].run(pipe)
    with accel.enable(pipe, cache="none") as session:
        assert torch.equal(TINY["wan"].run(pipe), plain)
    assert "no method is on" in str(session.summary())


def test_summary_in_three_forms_before_and_after_disable(pipe: Any) -> None:
    with accel.enable(pipe, accel.AccelConfig(cache="delta")) as session:
        assert "no run yet" in str(session.summary())
        TINY["wan"].run(pipe)
    summary = session.summary()
    assert json.loads(summary.to_json()) == summary.to_dict()
    run = summary.to_dict()["runs"][0]
    assert run["branches"] == ["cond", "uncond"]
    assert run["grid"] == [3, 12, 16]
    assert 0 < run["denoiser_seconds"] <= run["seconds"]
    report = run["methods"]["delta"]
    assert report["block_calls"] == 4 * 8 * 2
    assert report["reused"] == sum(report["reused_by_step"])
    assert report["relative_change"] > 0
    assert f"reused {report['reused']} of 64 block calls" in str(summary)
    assert "576 tokens (3×12×16)" in str(summary)


def test_the_whole_call_is_timed_where_the_pipeline_tells_both_of_its_ends(pipe: Any) -> None:
    def stop(*_: Any) -> dict[str, Any]:
        raise RuntimeError("stopped by the test")

    before = snapshot(pipe)
    with accel.enable(pipe, cache="none") as session:
        began = time.perf_counter()
        TINY["wan"].run(pipe)
        elapsed = time.perf_counter() - began
        try:
            TINY["wan"].run(pipe, callback_on_step_end=stop)
        except RuntimeError:
            pipe.maybe_free_model_hooks()  # As whoever goes on after a failure does.
            TINY["wan"].run(pipe, num_inference_steps=2)  # With less, while it is still handled.
        pipe.maybe_free_model_hooks()
    assert snapshot(pipe) == before
    whole, broken, less = session.summary().to_dict()["runs"]
    assert whole["denoiser_seconds"] <= whole["seconds"] < whole["call_seconds"] < elapsed, (
        "the text is encoded outside"
    )
    assert (broken["state"], broken["call_seconds"]) == ("broken off", None)
    assert less["state"] == "finished" and less["seconds"] < less["call_seconds"] < elapsed
    text = str(session.summary())
    assert f"{whole['seconds']:.2f} s in the loop, {whole['call_seconds']:.2f} s in all" in text
    assert text.count(" s in all") == 2
    other = TINY["dit"].build()
    with accel.enable(other, cache="none") as session:
        TINY["dit"].run(other)
    assert session.summary().to_dict()["runs"][0]["call_seconds"] is None, "it checks no arguments"
    assert str(session.summary()).endswith(" s in the loop")


def test_the_summary_tells_the_settings_as_they_held(pipe: Any) -> None:
    config = accel.AccelConfig(attention={"method": "pisa", "tail": "none"}, cache="flashblock")
    with accel.enable(pipe, config) as session:
        TINY["wan"].run(pipe)
    data = session.summary().to_dict()
    assert accel.AccelConfig.from_dict(data["config"]) == config and data["config"]["attention"]["density"] is None
    assert data["settings"]["pisa"]["density"] == 0.125 and "density=0.125, tail=none" in str(session.summary())
    assert data["settings"]["flashblock"]["density"] is None, "the attention beside it decides"
    with accel.enable(pipe, cache="flashblock") as session:
        assert session.summary().to_dict()["settings"]["flashblock"]["density"] == 0.25


def test_too_few_steps_say_that_nothing_was_done(pipe: Any) -> None:
    with (
        accel.enable(pipe, cache="delta", dense_steps=1.0) as session,
        pytest.warns(accel.AccelWarning, match="did nothing"),
    ):
        TINY["wan"].run(pipe)
    assert "did nothing" in str(session.summary())


def test_calls_by_hand_run_plainly_and_are_counted(pipe: Any) -> None:
    arguments = {
        "hidden_states": torch.randn(1, 16, 3, 24, 32, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.zeros(1, 8, pipe.transformer.config.text_dim),
    }
    arguments["hidden_states"] = arguments["hidden_states"][:, : pipe.transformer.config.in_channels]
    with torch.no_grad():
        plain = pipe.transformer(**arguments).sample
        with accel.enable(pipe, cache="delta") as session:
            assert torch.equal(pipe.transformer(**arguments).sample, plain)
    assert session.summary().to_dict()["calls_outside_runs"] == 1
    assert "outside of runs of this pipeline, the denoiser was called once" in str(session.summary())


def failing_at(step_to_fail: int) -> Any:
    def callback(_pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == step_to_fail:
            raise RuntimeError("stopped by the test")
        return kwargs

    return callback


def test_a_run_that_fails_in_its_last_step_is_called_broken_off(pipe: Any) -> None:
    with accel.enable(pipe, cache="delta") as session:
        with pytest.raises(RuntimeError, match="stopped by the test"):
            TINY["wan"].run(pipe, callback_on_step_end=failing_at(7))
        assert session.summary().to_dict()["runs"][0]["state"] == "broken off"
        try:
            raise ValueError("an exception of the caller, under way while the pipeline runs")
        except ValueError:
            TINY["wan"].run(pipe)
        assert session.summary().to_dict()["runs"][1]["state"] == "finished"


def test_summary_in_the_middle_of_a_run(pipe: Any) -> None:
    texts = []

    def look(_pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        texts.append(str(session.summary()))
        return kwargs

    with accel.enable(pipe, cache="delta") as session:
        TINY["wan"].run(pipe, callback_on_step_end=look)
    assert "run 1: 3 steps of 8 so far" in texts[2]


def test_disable_and_enable_in_the_middle_of_a_run(pipe: Any) -> None:
    before = snapshot(pipe)
    sessions = []

    def switch(running: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            accel.disable(running)
        if step == 5:
            sessions.append(accel.enable(running, cache="delta"))
        return kwargs

    sessions.append(accel.enable(pipe, cache="delta"))
    TINY["wan"].run(pipe, callback_on_step_end=switch)
    first, second = (session.summary().to_dict() for session in sessions)
    assert first["runs"][0]["state"] == "broken off"
    assert second["runs"] == []
    accel.disable(pipe)
    assert snapshot(pipe) == before


@pytest.mark.parametrize("loss", ["compiled", "replaced", "own bar"])
def test_disable_finds_its_session_whatever_was_changed_since(loss: str) -> None:
    pipe: Any = TINY["wan"].build()
    blocks = list(pipe.transformer.blocks)
    session = accel.enable(pipe, cache="delta")
    if loss == "compiled":
        pipe.transformer.compile(backend="eager")
    elif loss == "replaced":
        pipe.transformer = TINY["wan"].build(seed=1).transformer
    else:
        theirs = pipe.progress_bar
        pipe.progress_bar = lambda *args, **kwargs: theirs(*args, **kwargs)
    if loss != "own bar":
        with pytest.raises(accel.AccelError, match="accelerated already"):
            accel.enable(pipe, cache="delta")
    accel.disable(pipe)
    assert not session.enabled
    assert not any("_compiled_call_impl" in vars(block) for block in blocks)
    with accel.enable(pipe, cache="none") if loss != "compiled" else contextlib.nullcontext():
        TINY["wan"].run(pipe, num_inference_steps=2)
    assert session.summary().to_dict()["runs"] == []


def test_the_session_kept_for_its_summary_does_not_keep_the_model() -> None:
    pipe = TINY["wan"].build()
    with accel.enable(pipe, cache="delta") as session:
        TINY["wan"].run(pipe)
    transformer = weakref.ref(pipe.transformer)
    del pipe
    gc.collect()
    assert transformer() is None
    assert session.summary().to_dict()["runs"][0]["methods"]["delta"]["reused"] > 0


def test_another_thread_that_uses_the_transformer_meanwhile_runs_plainly(pipe: Any) -> None:
    other = type(pipe)(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)})
    other.set_progress_bar_config(disable=True)
    plain = TINY["wan"].run(pipe)
    results = []

    def preview(_pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            thread = threading.Thread(target=lambda: results.append(TINY["wan"].run(other)))
            thread.start()
            thread.join()
        return kwargs

    with accel.enable(pipe, cache="delta"):
        alone = TINY["wan"].run(pipe)
        assert torch.equal(TINY["wan"].run(pipe, callback_on_step_end=preview), alone)
    assert torch.equal(results[0], plain)


def test_many_runs_are_remembered_in_little_room_and_few_lines(pipe: Any) -> None:
    with accel.enable(pipe, cache="delta", dense_steps=0.0) as session:
        for _ in range(12):
            TINY["wan"].run(pipe, num_inference_steps=4, guidance_scale=1.0)
    assert len(session.summary().to_dict()["runs"]) == 12
    text = str(session.summary())
    assert "the last 4 of 12 runs" in text
    assert len(text.splitlines()) < 20


def test_what_is_forgotten_is_not_in_the_summary_and_acceleration_goes_on(pipe: Any) -> None:
    with accel.enable(pipe, cache="delta", dense_steps=0.0) as session:
        for _ in range(2):
            TINY["wan"].run(pipe, num_inference_steps=4)
        counted = [run["counts"]["delta"] for run in session.summary().to_dict()["runs"]]
        assert len(counted) == 2 and counted[0] == counted[1] and set(counted[0]) == {"computed", "reused"}
        session.forget()
        assert session.summary().to_dict()["runs"] == []
        TINY["wan"].run(pipe, num_inference_steps=4)
    session.forget()
    (run,) = session.summary().to_dict()["runs"]
    assert run["counts"]["delta"] == counted[0] and "run 1: " in str(session.summary())
    report = run["methods"]["delta"]
    assert run["counts"]["delta"]["reused"] == report["reused"]
    assert sum(run["counts"]["delta"].values()) == report["block_calls"]


def test_a_replaced_progress_bar_is_said_to_hide_the_runs() -> None:
    pipe: Any = TINY["wan"].build()
    session = accel.enable(pipe, cache="delta")
    pipe.progress_bar = type(pipe).progress_bar.__get__(pipe)
    with pytest.warns(accel.AccelWarning, match="progress_bar was replaced after enable"):
        TINY["wan"].run(pipe)
    session.disable()
    assert "no run yet" in str(session.summary())
    assert "called 16 times, plainly" in str(session.summary())


def test_a_method_that_fails_at_the_end_of_a_run_still_comes_off(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(pipe)
    session = accel.enable(pipe, cache="delta")

    def fail(self: DeltaCache) -> None:
        raise RuntimeError("stopped by the test")

    monkeypatch.setattr(DeltaCache, "end_run", fail)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        session.disable()
    assert snapshot(pipe) == before


def test_a_run_whose_calls_name_no_branch_is_said_to_be_plain() -> None:
    """As in a user's subclass of a pipeline, with a loop of its own."""
    pipe: Any = TINY["wan"].build()
    plain = TINY["wan"].run(pipe)
    session = accel.enable(pipe, cache="delta")
    pipe.transformer.cache_context = lambda name, **kwargs: contextlib.nullcontext()
    with pytest.warns(accel.AccelWarning, match="a run went by plainly"):
        assert torch.equal(TINY["wan"].run(pipe), plain)
    assert "a run went by plainly" in str(session.summary())
    session.disable()
