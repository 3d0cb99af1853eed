"""The clock on every guidance form, with two denoisers, second-order schedulers, chunks and broken runs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from accel.pipelines.facts import Guidance
from accel.pipelines.families import families
from accel.runtime.clock import Clock, Moment
from accel.runtime.runs import watch_branches, watch_runs
from tests.tiny_pipelines import KIN, TINY

SEPARATE = Guidance("separate", ("cond", "uncond"), named=False)
BATCHED = Guidance("batched", ("uncond", "cond"), named=False)


def ticks(clock: Clock, timesteps: list[Any]) -> list[tuple[int, int, str]]:
    seen = []
    for timestep in timesteps:
        with clock.call("transformer", timestep) as moment:
            assert moment is not None
            assert clock.now is moment
            seen.append((moment.chunk, moment.step, moment.branch))
    return seen


def test_separate_calls_share_a_step_by_object_and_by_value() -> None:
    clock = Clock(SEPARATE)
    clock.start_run(2)
    first, second = torch.tensor([900.0]), torch.tensor([800.0])
    assert ticks(clock, [first, first, second, torch.tensor([800.0])]) == [
        (0, 0, "cond"),
        (0, 0, "uncond"),
        (0, 1, "cond"),
        (0, 1, "uncond"),
    ]


def test_guidance_that_ends_early_and_distilled_models_make_one_call_per_step() -> None:
    clock = Clock(SEPARATE)
    clock.start_run(3)
    seen = ticks(clock, [9.0, 9.0, 8.0, 7.0])
    assert [step for _, step, _ in seen] == [0, 0, 1, 2]
    assert [branch for *_, branch in seen] == ["cond", "uncond", "cond", "cond"]


def test_the_branches_of_a_run_are_those_of_its_form_and_one_without_guidance() -> None:
    for form, guided, number in (("separate", True, 2), ("separate", False, 1), ("batched", True, 1)):
        clock = Clock(Guidance(form, ("cond", "uncond"), named=False))
        clock.start_run(2, guided=guided)
        assert clock.branches == number
    clock = Clock(SEPARATE)
    clock.start_run(2, guided=False)
    clock.start_run(2)
    assert clock.branches == 2, "a run does not go by the one before"
    clock = Clock(Guidance("batched", ("uncond", "cond"), named=True, further=("uncond_stg", "uncond_modality")))
    clock.start_run(2)
    assert clock.branches == 3, "with those that its user may ask for"


def test_a_repeated_timestep_on_new_hidden_states_is_a_new_step() -> None:
    clock = Clock(SEPARATE)
    clock.start_run(3)
    samples = [torch.zeros(1), torch.ones(1)]
    seen = []
    for sample in (samples[0], samples[0], samples[1], samples[1]):
        with clock.call("transformer", torch.tensor(5.0), sample) as moment:
            assert moment is not None
            seen.append((moment.step, moment.branch))
    assert seen == [(0, "cond"), (0, "uncond"), (1, "cond"), (1, "uncond")]


@pytest.mark.parametrize("calls", [1, 2], ids=["distilled", "guided"])
def test_a_timestep_that_is_told_spares_asking_the_device(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FLUX and Chroma do, which divide the timestep anew for each call."""
    monkeypatch.setattr(torch, "equal", lambda *_: pytest.fail("waited for the device"))
    clock = Clock(SEPARATE)
    clock.start_run(4)
    seen = []
    for _ in range(4):
        told, sample = torch.tensor(5.0), torch.zeros(1)
        for _ in range(calls):
            with clock.call("transformer", told / 1000, sample, told=told) as moment:
                assert moment is not None
                seen.append((moment.step, moment.branch))
    assert seen == [(step, branch) for step in range(4) for branch in SEPARATE.order[:calls]]


def test_batched_calls_are_a_step_each_even_at_one_timestep() -> None:
    clock = Clock(BATCHED)
    clock.start_run(3)
    assert ticks(clock, [9.0, 8.0, 8.0]) == [(0, step, "cond_uncond") for step in range(3)]


def test_named_branches_need_no_timestep() -> None:
    clock = Clock(Guidance("separate", ("cond", "uncond"), named=True))
    clock.start_run(2)
    seen = []
    for name in ("pred_cond", "pred_uncond", "pred_cond_skip", "pred_cond", "pred_uncond"):
        with clock.branch(name), clock.call("transformer", None) as moment:
            assert moment is not None
            seen.append((moment.step, moment.branch))
    assert seen == [(0, "pred_cond"), (0, "pred_uncond"), (0, "pred_cond_skip"), (1, "pred_cond"), (1, "pred_uncond")]


@pytest.mark.parametrize("guidance", [BATCHED, SEPARATE])
def test_steps_begin_at_zero_in_each_chunk(guidance: Guidance) -> None:
    clock = Clock(guidance)
    clock.start_run(1)
    seen = []
    for chunk, timestep in ((1, 9.0), (1, 8.0), (2, 8.0), (2, 7.0)):
        with clock.call("transformer", timestep, chunk=chunk) as moment:
            assert moment is not None
            seen.append((moment.chunk, moment.step, moment.branch))
    assert [place[:2] for place in seen] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert {branch for *_, branch in seen} == {guidance.order[0] if guidance is SEPARATE else "cond_uncond"}


def test_a_call_that_fails_leaves_no_moment_and_the_next_run_starts_at_zero() -> None:
    clock = Clock(BATCHED)
    clock.start_run(2)
    with pytest.raises(RuntimeError), clock.call("transformer", 9.0):
        raise RuntimeError
    assert clock.now is None
    clock.start_run(5)
    with clock.call("transformer", 9.0) as moment:
        assert moment == Moment(run=1, chunk=0, step=0, num_steps=5, branch="cond_uncond", denoiser="transformer")


def test_calls_outside_of_a_run_have_no_moment() -> None:
    clock = Clock(BATCHED)
    with clock.call("transformer", 9.0) as moment:
        assert moment is None
    clock.start_run(1)
    clock.end_run()
    with clock.call("transformer", 9.0) as moment:
        assert moment is None


def test_another_thread_sees_no_moment_and_changes_no_branch() -> None:
    clock = Clock(SEPARATE)
    clock.start_run(1)
    seen: list[Moment | None] = []

    def other() -> None:
        with clock.branch("uncond"), clock.call("transformer", 9.0) as moment:
            seen.extend([moment, clock.now])

    with clock.call("transformer", 9.0) as moment:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert clock.now is moment
    assert seen == [None, None]


EXPECTED = {
    "wan": (8, ["cond", "uncond"]),
    "wan_unipc": (8, ["cond", "uncond"]),
    "wan22": (8, ["cond", "uncond"]),
    "wan_vace": (8, ["cond", "uncond"]),
    "wan22_ti2v": (8, ["cond", "uncond"]),
    "wan_v2v": (8, ["cond", "uncond"]),
    "cogvideox": (8, ["cond_uncond"]),
    "cogvideox15_i2v": (8, ["cond_uncond"]),
    "hunyuan_video": (8, ["cond"]),
    "hunyuan_video_i2v_concat": (8, ["cond", "uncond"]),
    "ltx_i2v": (8, ["cond_uncond"]),
    "skyreels_v2_df": (8, ["cond", "uncond"]),
    "flux": (8, ["cond"]),
    "flux_controlnet": (8, ["cond"]),
    "dit": (8, ["cond_uncond"]),
    # The Heun scheduler evaluates the model twice in each of its eight steps but the last.
    "sd3_heun": (15, ["cond_uncond"]),
    "sd35": (8, ["cond_uncond"]),
    "qwenimage": (8, ["cond", "uncond"]),
    "pixart": (8, ["cond_uncond"]),
    "sana": (8, ["cond_uncond"]),
    "flux2": (8, ["cond"]),
    "flux2_klein": (8, ["cond", "uncond"]),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_real_pipelines_tell_run_step_branch_and_denoiser(name: str) -> None:
    case = {**TINY, **KIN}[name]
    pipe: Any = case.build()
    guidances = {cls: g for family in families().values() for cls, g in family.pipelines.items()}
    clock = Clock(guidances.get(type(pipe).__name__, BATCHED))
    moments: list[Moment] = []
    undo = [watch_runs(pipe, clock.start_run, lambda _broken: clock.end_run())]
    for part in ("transformer", "transformer_2"):
        module = getattr(pipe, part, None)
        if module is None:
            continue
        undo.append(watch_branches(module, clock))

        def watched(*args: Any, _call: Any = module._call_impl, _name: str = part, **kwargs: Any) -> Any:
            with clock.call(_name, kwargs.get("timestep")) as moment:
                assert moment is not None
                moments.append(moment)
                return _call(*args, **kwargs)

        module._compiled_call_impl = watched
    case.run(pipe)
    steps, branches = EXPECTED[name]
    assert [m.step for m in moments] == [step for step in range(steps) for _ in branches]
    assert [m.branch for m in moments] == branches * steps
    assert {m.num_steps for m in moments} == {steps}
    assert {m.run for m in moments} == {0}
    counted = {part: sum(m.denoiser == part for m in moments) for part in {m.denoiser for m in moments}}
    assert counted == case.forwards
    for restore in undo:
        restore()
    assert "progress_bar" not in vars(pipe)
    assert "cache_context" not in vars(pipe.transformer)


def test_a_strength_leaves_fewer_steps_to_the_run() -> None:
    case = KIN["cogvideox_v2v"]
    pipe, planned = case.build(), []
    stop = watch_runs(pipe, planned.append, lambda _broken: None)
    case.run(pipe, strength=0.5)
    stop()
    assert planned == [4]


class MinimalBar:
    """A user's own bar: it cannot be closed, and takes no attribute."""

    __slots__ = ("count",)

    def __enter__(self) -> MinimalBar:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        self.count = count


class BarredPipeline:
    scheduler = None

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        return MinimalBar() if iterable is None else iter(iterable)


def test_bars_that_are_not_tqdm_begin_and_end_runs_too() -> None:
    pipe = BarredPipeline()
    seen: list[Any] = []
    stop = watch_runs(pipe, seen.append, seen.append)
    with pipe.progress_bar(total=3) as bar:
        bar.update(2)
        assert bar.count == 2
    assert seen == [3, False]
    with pytest.raises(KeyError), pipe.progress_bar(total=2):
        raise KeyError
    assert seen == [3, False, 2, True]
    assert list(pipe.progress_bar([7, 8])) == [7, 8]
    assert seen[4:] == [2, False]
    # Without a number of steps there is no schedule, and no run.
    assert list(pipe.progress_bar(value for value in (7, 8))) == [7, 8]
    assert len(seen) == 6
    stop()
    assert "progress_bar" not in vars(pipe)


def test_a_bar_that_is_closed_late_does_not_end_the_next_run() -> None:
    pipe = BarredPipeline()
    seen: list[Any] = []
    stop = watch_runs(pipe, seen.append, seen.append)
    first = pipe.progress_bar(total=1)
    second = pipe.progress_bar(total=2)
    first.__exit__(None, None, None)
    assert seen == [1, False, 2]
    second.__exit__(None, None, None)
    assert seen == [1, False, 2, False]
    stop()


def test_a_call_without_a_name_is_by_hand_where_the_pipeline_names_its_branches() -> None:
    clock = Clock(Guidance("separate", ("cond", "uncond"), named=True))
    clock.start_run(1)
    with clock.call("transformer", 9.0) as moment:
        assert moment is None
