"""Every method on every family: it acts, it repeats itself, it keeps its identities, and it goes without a trace."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import accel
from accel.pipelines.sites import inspect_pipeline
from tests.conformance.cases import MethodCase
from tests.conformance.snapshot import assert_copies, snapshot
from tests.tiny_pipelines import TinyCase


def last_run(session: Any) -> dict[str, Any]:
    return session.summary().to_dict()["runs"][-1]


def test_acts_and_comes_off_without_a_trace(method: MethodCase, case: TinyCase, pipe: Any, plain: torch.Tensor) -> None:
    before = snapshot(pipe)
    with accel.enable(pipe, **method.active) as session:
        first = case.run(pipe)
        second = case.run(pipe)
        assert_copies(pipe.transformer)
    run = last_run(session)
    assert method.acted(run["methods"][method.name]), run
    assert run["state"] == "finished"
    assert run["steps"] == run["planned_steps"] == case.steps
    time, height, width = run["grid"]
    assert time * height * width == case.tokens
    assert torch.isfinite(first).all()
    assert not torch.equal(first, plain)
    error = (first - plain).norm() / plain.norm()
    assert error < method.error, "the accelerated result has little to do with the plain one"
    assert torch.equal(first, second), "the second run differs from the first"
    assert snapshot(pipe) == before
    assert torch.equal(case.run(pipe), plain), "the pipeline's bits did not come back"
    assert_copies(pipe.transformer)


def test_second_run_equals_a_fresh_pipeline(method: MethodCase, case: TinyCase, pipe: Any) -> None:
    with accel.enable(pipe, **method.active):
        case.run(pipe, seed=1)
        used = case.run(pipe, seed=2)
    fresh_pipe = case.build()
    with accel.enable(fresh_pipe, **method.active):
        fresh = case.run(fresh_pipe, seed=2)
    assert torch.equal(used, fresh)


def test_identity_setting_gives_the_plain_bits(
    method: MethodCase, case: TinyCase, pipe: Any, plain: torch.Tensor
) -> None:
    assert method.identity is not None
    with accel.enable(pipe, **method.identity) as session:
        assert torch.equal(case.run(pipe), plain)
    assert not method.acted(last_run(session)["methods"][method.name])


def test_exception_in_the_middle_leaves_the_next_run_clean(
    method: MethodCase, case: TinyCase, pipe: Any, plain: torch.Tensor, accelerated: torch.Tensor
) -> None:
    """In the first step, and early and late."""
    before = snapshot(pipe)
    denoisers = [pipe.transformer, *filter(None, [getattr(pipe, "transformer_2", None)])]
    with accel.enable(pipe, **method.active) as session:
        for fatal_step in (0, 2, 5):
            left = fatal_step * sum(case.forwards.values()) // case.call["num_inference_steps"]

            def fail(*_: Any) -> None:
                nonlocal left
                if left == 0:
                    raise RuntimeError("stopped by the test")
                left -= 1

            handles = [denoiser.register_forward_pre_hook(fail) for denoiser in denoisers]
            with pytest.raises(RuntimeError, match="stopped by the test"):
                case.run(pipe, seed=9)
            for handle in handles:
                handle.remove()
            assert last_run(session)["state"] == "broken off"
            assert torch.equal(case.run(pipe), accelerated), f"after step {fatal_step}"
    assert snapshot(pipe) == before
    assert torch.equal(case.run(pipe), plain)


def test_disable_right_after_an_exception(method: MethodCase, case: TinyCase, pipe: Any, plain: torch.Tensor) -> None:
    before = snapshot(pipe)

    def fail(*_: Any) -> None:
        raise RuntimeError("stopped by the test")

    with pytest.raises(RuntimeError, match="stopped by the test"), accel.enable(pipe, **method.active):
        handle = pipe.transformer.register_forward_pre_hook(fail)
        try:
            case.run(pipe)
        finally:
            handle.remove()
    assert snapshot(pipe) == before
    assert torch.equal(case.run(pipe), plain)


def test_changed_size_in_the_next_run(method: MethodCase, case: TinyCase, pipe: Any) -> None:
    if "height" in case.call:
        height = case.call["height"] - case.smaller
        other = {"height": height, **_matching_inputs(case, height)}
    else:
        other = {"class_labels": [1, 2]}  # DiT has one size, but takes several classes at once.
    with accel.enable(pipe, **method.active) as session:
        case.run(pipe)
        second = case.run(pipe, **other)
        assert method.acted(last_run(session)["methods"][method.name])
    with accel.enable(pipe, **method.active):
        assert torch.equal(case.run(pipe, **other), second)


def _matching_inputs(case: TinyCase, height: int) -> dict[str, Any]:
    return {name: case.call[name][..., :height, :] for name in ("image", "video", "control_image") if name in case.call}


def test_identical_inputs_give_identical_outputs(method: MethodCase, case: TinyCase, pipe: Any) -> None:
    """On a step that reuses, too, and where the parent adds hints or residuals between the blocks.

    The scheduler is made to stand still, so that every step of a branch asks the denoiser for the same; where the
    pipeline scales its latents by the noise of the step, they are those of the first.
    """
    outputs: dict[tuple[str, str, int], list[torch.Tensor]] = {}
    first_asked: dict[Any, torch.Tensor] = {}
    facts = inspect_pipeline(pipe)
    with accel.enable(pipe, **method.active) as session:
        undo = []

        def stand_still(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            parameters = list(inspect.signature(type(module).forward).parameters)[1:]
            given = {**dict(zip(parameters, args, strict=False)), **kwargs}
            names = ("timestep", "r_timestep", "timesteps", "t", "sigma")
            same = {name: torch.full_like(given[name], 0.5) for name in names if given.get(name) is not None}
            now = session._clock.now
            if now is not None and "hidden_states" in given:
                place = (id(module), now.branch, now.chunk)
                same["hidden_states"] = first_asked.setdefault(place, given["hidden_states"])
            return (), {**given, **same}

        controlnet = getattr(pipe, "controlnet", None)
        for module in [denoiser.module for denoiser in facts.denoisers] + ([controlnet] if controlnet else []):
            undo.append(module.register_forward_pre_hook(stand_still, with_kwargs=True).remove)
        for denoiser in facts.denoisers:

            def collect(module: Any, args: Any, output: Any, name: str = denoiser.name) -> None:
                now = session._clock.now
                if now is not None:  # A chunk that is done is kept, which is no step.
                    result = output[0]  # A mapping has its keys in turn, and its values by number.
                    whole = torch.stack(result) if isinstance(result, list) else result
                    outputs.setdefault((name, now.branch, now.chunk), []).append(whole)

            undo.append(denoiser.module.register_forward_hook(collect).remove)
        step = pipe.scheduler.step
        pipe.scheduler.step = lambda noise, timestep, sample, *args, **kwargs: _Still(sample)
        try:
            case.run(pipe)
        finally:
            pipe.scheduler.step = step
            del pipe.scheduler.step
            for restore in undo:
                restore()
        assert method.acted(last_run(session)["methods"][method.name])
    assert sum(map(len, outputs.values())) == sum(case.forwards.values()) - case.filling
    for key, (first, *others) in outputs.items():
        for other in others:
            assert (other - first).norm() <= 1e-5 * first.norm(), key


class _Still(tuple):
    """What a scheduler returns, as a tuple or by its name, when it leaves the sample as it is."""

    def __new__(cls, sample: torch.Tensor) -> _Still:
        return super().__new__(cls, (sample, sample))

    @property
    def prev_sample(self) -> torch.Tensor:
        return self[0]
