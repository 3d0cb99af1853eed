"""`accel bench`: the work, from loading to the table."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from accel.cli import call, recorded
from accel.cli.bench import show, wording
from accel.cli.bench.command import Wanted
from accel.cli.bench.heat_run import measure_heat
from accel.cli.bench.results import Results, places_of
from accel.cli.durations import count, duration
from accel.cli.exits import RunFailed, note
from accel.cli.job.claims import Claims
from accel.cli.once import call_once, steps_for
from accel.cli.outputs import DEFAULT_FOLDER
from accel.cli.prepare import check_offload
from accel.cli.prepare import place as place_of
from accel.cli.printing import Format, emit, say
from accel.cli.request import Request
from accel.cli.run_generate import Ready, load_ready
from accel.config import AccelConfig
from accel.errors import AccelError
from accel.measure.backend import backend
from accel.measure.cells import HEADER_FILE, KIND, SCHEMA, Cell, Place, Store
from accel.measure.clip_score import ClipScore
from accel.measure.judge import judge
from accel.measure.lpips import Lpips
from accel.measure.matrix import NotGivenBack, Work, check, measure, order
from accel.measure.timing import changes, machine
from accel.measure.trial import Setting
from accel.measure.verdict import LEAST_PSNR
from accel.pipelines import demo
from accel.pipelines.loading import look_up
from accel.pipelines.sites import inspect_pipeline
from accel.reporting import side_file

_RESULTS = ("num_videos_per_prompt", "num_images_per_prompt")
_LOCK = "bench"


@dataclass(frozen=True)
class Plan:
    """What is measured: the settings, the one that others are compared with, and the runs of each."""

    settings: tuple[Setting, ...]
    baseline: Setting
    places: tuple[Place, ...]

    def to_dict(self, wanted: Wanted, fps: float | None) -> dict[str, Any]:
        """As it stands in `bench.json`, with the rate at which the model's videos are shown; None for images."""
        return {
            "command": wanted.command,
            "settings": {one.name: one.to_dict() for one in self.settings},
            "baseline": self.baseline.name,
            "prompts": list(wanted.prompts),
            "seeds": list(wanted.seeds),
            "repeats": wanted.repeats,
            "batches": list(wanted.batches),
            "warmup_steps": wanted.warmup,
            "least_psnr_db": LEAST_PSNR if wanted.least_psnr is None else wanted.least_psnr,
            "frames_per_second": fps,
        }


def carry_out(wanted: Wanted) -> None:
    """Measures what is missing, and reports."""
    _report(measured(wanted), wanted.form)


def measured(wanted: Wanted, before: Callable[[Path, bool], object] = lambda folder, video: None) -> Results:
    """Measures what is missing of what is wanted; `before` is called before the first run, with the folder and whether
    the model makes videos."""
    base, form = wanted.base, wanted.form
    pipeline, folder = look_up(base.model, revision=base.revision)
    beside = demo.WEIGHTS if base.model == "demo" else folder if Path(base.model).expanduser().is_dir() else None
    plan = _plan(wanted, pipeline, beside)
    check_offload(base, [one.config for one in plan.settings])
    if base.model != "demo":
        say(f"loading {base.model}", form)
    ready = load_ready(base, AccelConfig(), place_of(base))
    for prompt in wanted.prompts:
        call.call_arguments(ready.pipe, replace(ready.request, prompt=prompt, seed=wanted.seeds[-1]))
    _check_batches(ready.pipe, wanted.batches)
    check(ready.pipe, plan.settings)
    judged_by = _judge(wanted)
    identity = _identity(wanted, plan, ready)
    where = wanted.folder or DEFAULT_FOLDER / wanted.kind / _folder_name(ready, identity)
    fresh = wanted.fresh and (where / HEADER_FILE).exists()
    if not fresh:
        Store.check(where, identity)
    before(where, call.makes_video(ready.pipe))
    where.mkdir(parents=True, exist_ok=True)
    # Whoever is at work there goes on with its own plan and files: nothing changes before the folder is ours.
    with _alone(where):
        if fresh:
            Store.clear(where)
        store = Store.open(where, identity)
        store.write_header(identity, plan.to_dict(wanted, call.frames_per_second(ready.pipe, ready.request)))
        if wanted.retry:
            store.drop([cell for cell in store if cell.error is not None])
        _measure(wanted, plan, ready, judged_by, store)
        if wanted.heat:
            measure_heat(_work(ready, judged_by), plan.settings, plan.places[0], store, wanted.form)
        return Results.read(where)


def _plan(wanted: Wanted, pipeline: type, beside: Path | None) -> Plan:
    found = [wording.read(text, beside) for text in wanted.settings]
    if wanted.settings_file is not None:
        found += wording.read_file(wanted.settings_file, beside)
    found = found or wording.default_settings()
    if wanted.baseline == wording.PLAIN and not any(one.name == wording.PLAIN for one in found):
        found = [wording.plain(), *found]
    if wanted.fewer_steps:
        known = {one.fingerprint for one in found}
        steps = _steps(wanted.base, pipeline)
        found += [one for one in wording.fewer_steps(steps) if one.fingerprint not in known] if steps else []
    settings = wording.named_apart([wording.with_files(one) for one in found])
    baseline = next((one for one in settings if one.name == wanted.baseline), None)
    if baseline is None:
        raise AccelError(
            f"--baseline {wanted.baseline!r} is none of the settings: {'; '.join(one.name for one in settings)}"
        )
    places = places_of(wanted.prompts, wanted.seeds, wanted.repeats, wanted.batches)
    return Plan(tuple(settings), baseline, places)


def _steps(base: Request, pipeline: type) -> int | None:
    """The steps of a call that says nothing else."""
    given = base.call.get("num_inference_steps")
    if given is not None:
        return int(given)
    if base.demo_size is not None:
        return int(demo.defaults(base.demo_size)["num_inference_steps"])
    parameter = call.parameters_of(pipeline).get("num_inference_steps")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else None


def _check_batches(pipe: Any, batches: Sequence[int]) -> None:
    if max(batches) > 1 and _results_argument(pipe) is None:
        raise AccelError(f"{type(pipe).__name__} makes one result in a call; leave --batch out")


def _results_argument(pipe: Any) -> str | None:
    return next((name for name in _RESULTS if name in call.parameters_of(pipe)), None)


def _identity(wanted: Wanted, plan: Plan, ready: Ready) -> dict[str, Any]:
    """What all runs of a folder have in common; the quality of each is that beside the baseline."""
    request = ready.request
    arguments = call.call_arguments(ready.pipe, request)
    signature = {name: p.default for name, p in inspect.signature(ready.pipe.__call__).parameters.items()}
    return {
        "model": recorded.portable(request.model),
        "size": request.demo_size,
        "pipeline": type(ready.pipe).__name__,
        "weights": ready.weights,
        "dtype": str(inspect_pipeline(ready.pipe).denoisers[0].module.dtype).removeprefix("torch."),
        "call": side_file.plain_data(
            {
                name: value
                for name, value in {**signature, **arguments}.items()
                if name in (*request.call, "height", "width", "num_frames", "num_inference_steps", "guidance_scale")
            }
        ),
        "options": {name: value for name, value in request.options().items() if name not in ("fps", "dtype")},
        "baseline_backend": backend(ready.pipe),
        "baseline": f"{plan.baseline.name}, {plan.baseline.fingerprint[:8]}",
        "measures": {"lpips": wanted.lpips is not None, "clip": wanted.clip_model and wanted.clip_model.name},
        "machine": machine(request.device),
        "uncommitted_changes": changes(),
        "accel": side_file.versions()["accel"],
    }


def _folder_name(ready: Ready, identity: dict[str, Any]) -> str:
    name = Path(ready.request.model).name or "model"
    size = f"_{ready.request.demo_size}" if ready.request.demo_size else ""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name}{size}_{digest}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    claims = Claims(folder)
    try:
        with claims.claim(_LOCK) as mine:
            if not mine:
                raise AccelError(f"another accel bench is at work on {folder}; wait for it, or choose another --output")
            yield
    finally:
        claims.close()


def _judge(wanted: Wanted) -> Callable[..., dict[str, Any]]:
    """All figures that can be had; refuses weights that are not there."""
    return partial(
        judge,
        lpips=None if wanted.lpips is None else Lpips(wanted.lpips),
        clip_score=None if wanted.clip_model is None else ClipScore(wanted.clip_model),
    )


def _measure(wanted: Wanted, plan: Plan, ready: Ready, judged_by: Callable[..., dict[str, Any]], store: Store) -> None:
    form, pipe = wanted.form, ready.pipe
    total = len(list(order(plan.settings, plan.baseline, plan.places)))
    left = sum(store.find(one, place) is None for one, place in order(plan.settings, plan.baseline, plan.places))
    known = f", {total - left} known already" if left < total else ""
    say(
        f"{count(len(plan.settings), 'setting')} on {count(len(wanted.prompts), 'prompt')}: "
        f"{count(total, 'run')}{known}; each is kept in {store.folder}",
        form,
    )
    pipe.set_progress_bar_config(disable=True)
    began, done = time.perf_counter(), 0

    def on_cell(setting: Setting, place: Place, cell: Cell) -> None:
        nonlocal done
        done += 1
        spent = time.perf_counter() - began
        what = f"failed: {cell.error}" if cell.error is not None else f"{cell.figures['seconds']['total']:.1f} s"
        rest = f"about {duration(spent / done * (left - done))} left" if done < left else "none left"
        several = f", {place.batch} at once" if place.batch > 1 else ""
        say(f"{total - left + done} of {total}: {setting.name}{several}: {what}; {rest}", form)

    first = plan.places[0]
    try:
        measure(
            _work(ready, judged_by),
            plan.settings,
            plan.baseline,
            plan.places,
            store,
            warmup=steps_for(pipe, ready.request, wanted.warmup),
            keep=lambda place: wanted.clips == "all" or (wanted.clips == "first" and place == first),
            on_cell=on_cell,
        )
    except NotGivenBack as error:
        raise RunFailed(str(error)) from error
    except KeyboardInterrupt:
        note(f"{count(done, 'run')} more kept in this start; the same command goes on from here")
        raise


def _work(ready: Ready, judged_by: Callable[..., dict[str, Any]]) -> Work:
    pipe = ready.pipe

    def arguments(place: Place, steps: int | None) -> Mapping[str, Any]:
        found = call.call_arguments(pipe, replace(ready.request, prompt=place.prompt, seed=place.seed))
        if steps is not None:
            found["num_inference_steps"] = steps
        if place.batch > 1:
            found[str(_results_argument(pipe))] = place.batch
        return found

    def judged(frames: np.ndarray, reference: np.ndarray | None, place: Place) -> dict[str, Any]:
        # The detector of what a prompt names knows the built-in model's scenes.
        return judged_by(frames, reference, place.prompt, scenes=ready.request.demo_size is not None)

    return Work(
        pipe,
        _steps(ready.request, type(pipe)),
        arguments,
        lambda given: call_once(pipe, ready.request, dict(given)),
        call.frames_of,
        judged,
    )


def _report(results: Results, form: Format) -> None:
    lines = results.lines()
    if form is Format.JSON:
        emit(
            {
                "schema": SCHEMA,
                "kind": KIND,
                "folder": str(results.store.folder.absolute()),
                "identity": results.identity,
                "plan": results.plan,
                "lines": lines,
                "heat": {one.name: heat for one in results.settings if (heat := results.store.heat(one)) is not None},
            }
        )
        return
    for line in (*show.table(lines), *show.remarks(lines)):
        say(line, form)
    say(f"{results.store.folder}: all figures; accel compare {results.store.folder} shows the results", form)
