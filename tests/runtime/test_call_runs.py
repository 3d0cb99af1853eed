"""Runs that the pipeline's own call tells: they begin, end and break off where they should, and leave no trace."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import accel
from accel.errors import AccelWarning
from accel.pipelines.facts import CallMarks
from accel.runtime.call_runs import watch_calls
from accel.runtime.runs import watcher_of
from tests.conformance.snapshot import snapshot
from tests.tiny_pipelines import TINY

MARKS = CallMarks(start="prepare", steps="num_steps")


class Pipeline:
    """A loop between `prepare` and the end of the call."""

    def __init__(self, factor: int = 1) -> None:
        self.factor = factor
        self.num_steps = 0

    def prepare(self, start: int) -> int:
        return start

    def __call__(self, steps: int, *, step: Callable[[int], None] | None = None, start: int = 0) -> int:
        """Adds up."""
        if steps < 1:
            raise ValueError("no steps")
        self.num_steps = steps
        total = self.prepare(start)
        for number in range(steps):
            if step is not None:
                step(number)
            total += self.factor
        return total


class Wrapped(Pipeline):
    """A user's subclass."""

    def __call__(self, *args: Any, **kwargs: Any) -> int:
        return 10 * super().__call__(*args, **kwargs)


def watched(kind: type[Pipeline] = Pipeline) -> tuple[Any, list[Any], Callable[[], None]]:
    pipe, seen = kind(factor=2), []
    return pipe, seen, watch_calls(pipe, MARKS, seen.append, seen.append, owner="me")


@pytest.mark.parametrize("kind", [Pipeline, Wrapped])
def test_a_run_begins_at_the_mark_and_ends_with_the_call(kind: type[Pipeline]) -> None:
    pipe, seen, undo = watched(kind)
    during: list[list[Any]] = []
    assert pipe(3, step=lambda _: during.append(list(seen))) == kind(2)(3)
    assert during == [[3]] * 3 and seen == [3, False]
    undo()
    assert type(pipe) is kind and vars(pipe) == {"factor": 2, "num_steps": 3}
    assert pipe(2) == kind(2)(2) and seen == [3, False]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_breaks_the_run_off_at_once(error: type[BaseException]) -> None:
    pipe, seen, undo = watched()

    def fail(number: int) -> None:
        if number == 1:
            raise error

    with pytest.raises(error):
        pipe(3, step=fail)
    assert seen == [3, True]
    assert pipe(1) == 2 and seen == [3, True, 1, False]
    undo()


def test_a_call_that_fails_before_the_loop_is_no_run_and_neither_is_a_mark_by_hand() -> None:
    pipe, seen, undo = watched()
    with pytest.raises(ValueError, match="no steps"):
        pipe(0)
    assert pipe.prepare(4) == 4
    assert seen == []
    undo()


def test_a_start_that_refuses_breaks_the_run_off() -> None:
    pipe, seen = Pipeline(), []

    def refuse(_steps: int) -> None:
        raise accel.AccelError("refused by the test")

    undo = watch_calls(pipe, MARKS, refuse, seen.append)
    with pytest.raises(accel.AccelError, match="refused"):
        pipe(3)
    assert seen == [True]
    undo()


def test_what_stops_in_the_middle_hears_no_end() -> None:
    pipe, seen, undo = watched()
    assert pipe(3, step=lambda number: undo() if number == 1 else None) == 6
    assert seen == [3] and type(pipe) is Pipeline and "prepare" not in vars(pipe)


def test_the_class_looks_like_the_plain_one_and_makes_plain_pipelines() -> None:
    pipe, seen, undo = watched()
    own: Any = type(pipe)
    assert own is not Pipeline and isinstance(pipe, Pipeline)
    assert (own.__name__, own.__qualname__, own.__module__) == ("Pipeline", "Pipeline", Pipeline.__module__)
    assert inspect.signature(pipe.__call__) == inspect.signature(Pipeline().__call__)
    assert watcher_of(pipe) == "me"
    for twin in (own(2), copy.copy(pipe), copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert type(twin) is Pipeline and twin.factor == 2
        assert twin(3) == 6
    assert seen == []
    undo()
    assert watcher_of(pipe) is None


CASE = TINY["anyflow_far"]
SMALL = {"height": 32, "width": 32, "chunk_partition": [2, 1], "num_inference_steps": 2}


def test_an_enabled_pipeline_copies_and_shares_its_transformer_plainly() -> None:
    pipe = CASE.build()
    plain, before = CASE.run(pipe, **SMALL), snapshot(pipe)
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    with accel.enable(pipe, cache="flashblock") as session:
        accelerated = CASE.run(pipe, **SMALL)
        twin = copy.deepcopy(pipe)
        assert type(twin) is type(other) and torch.equal(CASE.run(twin, **SMALL), plain)
        with pytest.raises(KeyboardInterrupt):
            CASE.run(pipe, **SMALL, callback_on_step_end=_interrupt)
        assert torch.equal(CASE.run(other, **SMALL), plain), "not in the run that was broken off"
        assert session.summary().to_dict()["calls_outside_runs"] == 5
        assert torch.equal(CASE.run(pipe, **SMALL), accelerated)
        with pytest.raises(accel.AccelError, match="accelerated already"):
            accel.enable(other, cache="flashblock")
    assert not torch.equal(accelerated, plain)
    assert snapshot(pipe) == before and type(pipe) is type(other)
    assert torch.equal(CASE.run(pipe, **SMALL), plain)
    run = session.summary().to_dict()["runs"][0]
    assert 0 < run["denoiser_seconds"] <= run["seconds"] < run["call_seconds"], "decoding is not in the loop"


def test_a_replaced_mark_is_told() -> None:
    pipe: Any = CASE.build()
    plain = CASE.run(pipe, **SMALL)
    with accel.enable(pipe, cache="flashblock"):
        pipe.prepare_latents = type(pipe).prepare_latents.__get__(pipe)
        with pytest.warns(AccelWarning, match=r"pipe\.prepare_latents was replaced after enable"):
            assert torch.equal(CASE.run(pipe, **SMALL), plain)
    del pipe.prepare_latents
    assert torch.equal(CASE.run(pipe, **SMALL), plain)


def test_a_pipeline_that_is_taken_off_in_the_middle_goes_on_plainly() -> None:
    pipe = CASE.build()
    plain, before = CASE.run(pipe, **SMALL), snapshot(pipe)
    with accel.enable(pipe, cache="flashblock") as session:

        def leave(_pipe: Any, _step: int, _timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
            session.disable()
            return kept

        CASE.run(pipe, **SMALL, callback_on_step_end=leave)
    (run,) = session.summary().to_dict()["runs"]
    assert (run["state"], run["steps"], run["planned_steps"]) == ("broken off", 1, 4)
    assert snapshot(pipe) == before
    assert torch.equal(CASE.run(pipe, **SMALL), plain)


def _interrupt(_pipe: Any, _step: int, _timestep: Any, _kept: dict[str, Any]) -> dict[str, Any]:
    raise KeyboardInterrupt
