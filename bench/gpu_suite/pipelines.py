"""Whole pipelines on the device: random transformers at published sizes and the built-in model, with each method."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from accel.measure.confidence import interval
from accel.measure.timing import Timing, host_clock, interleaved
from bench.gpu_suite import models
from bench.gpu_suite.cells import Cells
from bench.gpu_suite.figures import said
from bench.gpu_suite.models import MODELS, TINY, Model, Setting

DEMO = {
    "pisa 0.25": {"attention": {"method": "pisa", "density": 0.25}},
    "adaspa 0.25": {"attention": {"method": "adaspa", "density": 0.25}},
    "delta": {"cache": [{"method": "delta"}]},
    "tdc": {"cache": [{"method": "tdc"}]},
    "tdc, pisa 0.25": {"attention": {"method": "pisa", "density": 0.25}, "cache": [{"method": "tdc"}]},
}
PROMPT = "a red circle moving left on a black background"
# Runs of each that are timed, after one of warm-up; of fewer than three nothing can be said of noise.
REPEATS = 3
# Pairs that tell what the recorder costs, on the model that calls the most blocks in a second, and steps of a run.
PAIRS, WATCHED, WATCHED_STEPS = 20, "flux-1024", 4
WATCHING: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "enabled, no method": {},
    "every block call recorded": {"cache": [{"method": "delta", "interval": 1}]},
}
STORED = "wan-14b-720p"


def run(cells: Cells, device: str, tiny: bool) -> None:
    """A cell for each setting of each random transformer and of the built-in model, for the recorder and for weights
    in 4 bits; `tiny` takes all models with one setting."""
    known = TINY if tiny else MODELS
    first = 1 if tiny else None
    for name, setting in list(models.SETTINGS.items())[:first]:
        for model, geometry in known.items():
            measure = partial(_random, geometry, setting, device)
            about = {"steps": setting.steps, "tokens": models.tokens(geometry), "sizes": geometry.sizes}
            _run(cells, f"{model}/{name}", measure, blocks=f"{geometry.share:.3g} of the published", **about)
    _run(cells, f"recorder/{WATCHED}", partial(_watched, known[WATCHED], 3 if tiny else PAIRS, device))
    size, steps = ("quick", {"num_inference_steps": 4}) if tiny else ("standard", {})
    for name, config in list(DEMO.items())[:first]:
        _run(cells, f"demo/{name}", partial(_demo, config, size, steps, device), config=config)
    stored = known[STORED] if not tiny else replace(known[STORED], blocks=dict.fromkeys(known[STORED].blocks, 2))
    _run(cells, f"{STORED}/weights in nvfp4", partial(_stored, stored, device))


def _run(cells: Cells, name: str, measure: Callable[[], dict[str, Any]], **about: Any) -> None:
    cells.run(name, measure, **about)
    # A pipeline is a circle of references, and the next one wants its memory.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _demo(config: dict[str, Any], size: str, steps: dict[str, int], device: str) -> dict[str, Any]:
    import accel
    from accel.measure.quality import psnr
    from accel.measure.verdict import LEAST_PSNR

    with torch.inference_mode(False):
        pipe = accel.load_pipeline("demo", size=size, torch_dtype=models.dtype_on(device), device=device)
    pipe.set_progress_bar_config(disable=True)

    def arguments() -> dict[str, Any]:
        return {"prompt": PROMPT, "generator": torch.Generator().manual_seed(0), "output_type": "np", **steps}

    compared = _compared(pipe, arguments, config, device)
    found = compared.figures
    if compared.results:
        decibels = psnr(compared.results["accelerated"], compared.results["plain"])
        found["psnr_db"] = None if decibels == float("inf") else round(decibels, 2)
        if decibels < LEAST_PSNR:
            _withhold(found, f"its PSNR of {decibels:.1f} dB is under {LEAST_PSNR:g}")
    return {**found, "size": size}


def _random(model: Model, setting: Setting, device: str) -> dict[str, Any]:
    """A few steps of one guidance branch; the weights are random, so that this is speed only."""
    pipe = models.pipeline(model, device)
    memory = torch.cuda.get_device_properties(device).total_memory if torch.device(device).type == "cuda" else None
    config = models.config_for(setting, model, memory)
    given = models.arguments(model, setting.steps, device)
    found = _compared(pipe, lambda: given, config, device).figures
    for row in found.get("rows", {}).values():
        row["seconds_a_step"] = round(row["loop_seconds"] / setting.steps, 4)
    return {**found, "config": config, "weights": "random: speed only"}


@dataclass
class _Comparison:
    """The last results of the plain and of the accelerated pipeline, none where that was refused, and the figures."""

    results: dict[str, Any]
    figures: dict[str, Any]


def _compared(pipe: Any, arguments: Callable[[], dict[str, Any]], config: dict[str, Any], device: str) -> _Comparison:
    """The plain and the accelerated pipeline in turns: seconds, memory, what ran, and the speed-up with its spread."""
    import accel

    seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "accelerated": []}
    results: dict[str, Any] = {}
    peaks, ran = {}, {}
    for turn in range(REPEATS + 1):
        for name, times in seconds.items():
            try:
                with (
                    accel.enable(pipe, accel.AccelConfig.from_dict(config))
                    if name == "accelerated"
                    else nullcontext() as session
                ):
                    results[name], whole, loop, peaks[name] = _timed(pipe, arguments(), device)
            except accel.AccelError as refusal:
                return _Comparison({}, {"refused": {"accelerated": str(refusal)}})
            if session is not None:
                (ran,) = session.summary().to_dict()["runs"]
            if turn > 0:  # The first of each is warm-up.
                times.append((whole, loop))
    _require_finite(results)
    rows: dict[str, dict[str, Any]] = {}
    loops = {}
    for name, times in seconds.items():
        whole, loop = (statistics.median(column) for column in zip(*times, strict=True))
        rows[name] = {"seconds": round(whole, 4), "loop_seconds": round(loop, 4), "peak_mb": peaks[name]}
        loops[name] = Timing(tuple(loop for _, loop in times))
    rows["accelerated"]["speed_up"] = said(loops["plain"], loops["accelerated"])
    found = {"rows": rows, "repeats": REPEATS, "warmup": 1, "methods": ran["methods"], "fallbacks": ran["fallbacks"]}
    idle = [note for note in ran["notes"] if "did nothing" in note]
    if idle:
        _withhold(found, "; ".join(idle))
    return _Comparison(results, found)


def _withhold(found: dict[str, Any], why: str) -> None:
    """Takes the speed-up back, and says why."""
    found["rows"]["accelerated"].pop("speed_up", None)
    found["withheld"] = why


def _require_finite(results: dict[str, Any]) -> None:
    for name, result in results.items():
        if not torch.isfinite(torch.as_tensor(result)).all():
            raise ValueError(f"the {name} pipeline's result is not finite")


def _watched(model: Model, pairs: int, device: str) -> dict[str, Any]:
    """What Accel's clock and recorder cost: the same bits with them and without, in turns; enabling is not timed."""
    import accel

    pipe, given = models.pipeline(model, device), models.arguments(model, WATCHED_STEPS, device)
    results: dict[str, Any] = {}

    clock = host_clock(device)

    def case(name: str, config: dict[str, Any] | None) -> Callable[[], float]:
        def call() -> None:
            results[name] = _first(pipe(**given))

        def seconds() -> float:
            with nullcontext() if config is None else accel.enable(pipe, accel.AccelConfig.from_dict(config)):
                return clock(call)

        return seconds

    cases = {name: case(name, config) for name, config in WATCHING.items()}
    times = interleaved(cases, repeats=pairs, clock=lambda case: case())
    different = [name for name, result in results.items() if not torch.equal(result, results["plain"])]
    if different:
        raise ValueError(f"other bits than the plain pipeline's with: {', '.join(different)}")
    rows = {}
    for name, time in times.items():
        rows[name] = {"seconds": round(time.median, 5)}
        if name != "plain":
            rows[name] |= added(time, times["plain"])
    return {"rows": rows, "pairs": pairs, "steps": WATCHED_STEPS}


def added(watched: Timing, plain: Timing) -> dict[str, float]:
    """What watching takes more, as a share: the median of the ratios of pairs, and where that lies with 95 %."""
    ratios = [own / base for own, base in zip(watched.seconds, plain.seconds, strict=True)]
    low, high = interval(ratios)
    found = {"more": statistics.median(ratios), "least": low, "most": high}
    return {name: round(share - 1, 5) for name, share in found.items()}


def _stored(model: Model, device: str) -> dict[str, Any]:
    """The whole transformer with its weights as they are and in NVFP4: bytes that it holds, and the peak of a step."""
    import accel

    pipe = models.pipeline(model, device, whole=True)
    short = replace(model, call={**model.call, "num_frames": 5}, latents=(*model.latents[:2], 2, *model.latents[3:]))
    given = models.arguments(short, 1, device)
    rows = {}
    for name, config in {"plain": None, "nvfp4-weight": {"quantize": {"method": "nvfp4-weight"}}}.items():
        with nullcontext() if config is None else accel.enable(pipe, accel.AccelConfig.from_dict(config)):
            held = sum(one.nbytes for one in (*pipe.transformer.parameters(), *pipe.transformer.buffers()))
            result, _, _, peak = _timed(pipe, given, device)
            _require_finite({name: result})
            rows[name] = {"weights_gb": round(held / 1e9, 4), "peak_mb": peak}
    return {"rows": rows, "frames": 5, "steps": 1}


def _timed(pipe: Any, arguments: dict[str, Any], device: str) -> tuple[Any, float, float, float | None]:
    """The result, the seconds of the call and of its denoising loop, and the peak of memory in megabytes."""
    from accel.measure.one_run import timed_run

    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    run = timed_run(pipe, arguments)
    peak = round(torch.cuda.max_memory_allocated() / 1e6) if cuda else None
    return _first(run.output), run.seconds, run.loop_seconds or run.seconds, peak


def _first(output: Any) -> Any:
    """The one film or picture that a pipeline gave."""
    return (output.frames if hasattr(output, "frames") else output.images)[0]
