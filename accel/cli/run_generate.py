"""`accel generate`: the work, from loading to the files that are written."""

from __future__ import annotations

import inspect
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accel.cli import call, dense_comparison, methods, recorded
from accel.cli.exits import note
from accel.cli.methods import MethodOptions
from accel.cli.once import Done, run_once
from accel.cli.outputs import Destination, OutputFiles
from accel.cli.prepare import check_offload, load, number_format, place
from accel.cli.printing import Format, emit, say
from accel.cli.request import Request
from accel.config import AccelConfig
from accel.errors import AccelError
from accel.pipelines import demo
from accel.reporting import side_file
from accel.reporting.files import Writer, text_writer, write_together
from accel.reporting.video import encode


@dataclass(frozen=True)
class Ready:
    """A request with its pipeline loaded and checked against what was recorded."""

    pipe: Any
    request: Request
    config: AccelConfig
    weights: str | None
    load_seconds: float


def carry_out(request: Request, options: MethodOptions, target: Destination, form: Format) -> None:
    """Loads, runs, writes and reports; raises for everything that keeps the result from being written."""
    config, origin = chosen_methods(request, options)
    if request.compare_dense and not config.methods:
        raise AccelError("--compare-dense has nothing to compare: no method is on")
    if request.model != "demo":
        say(f"loading {request.model}", form)
    ready = load_ready(request, config, place(request))
    pipe, request = ready.pipe, ready.request
    arguments = call.call_arguments(pipe, request)
    video = call.makes_video(pipe) and arguments.get("num_frames") != 1
    files = OutputFiles(target.path(video=video, model=request.model))

    def label(bar: str) -> None:
        hidden = form is Format.JSON or not sys.stderr.isatty()
        pipe.set_progress_bar_config(disable=hidden, desc=bar)

    label("denoising")
    say(_what(ready, arguments), form)
    say(f"{origin}: {methods.describe(config)}", form)

    sheet: dict[Path, Writer] = {}
    comparison = None
    with recorded.threads(request.recorded):
        if request.compare_dense:
            done, plain = dense_comparison.run_both(pipe, request, config, label)
            comparison = dense_comparison.compare(done, plain, request)
            sheet = {files.sheet: dense_comparison.sheet(done, plain)}
        else:
            done = run_once(pipe, request, config)
        data = recorded.describe(ready, done, files.media, comparison)

    _say_what_ran(done, comparison, form)
    text = side_file.to_json(data)
    media, remark = encode(done.frames, files.media.suffix.lower(), data["output"]["fps"] or 1, done.sound)
    side: dict[Path, Writer] = {files.side: text_writer(text)}
    write_together({files.media: media, **sheet, **side}, overwrite=target.overwrite)
    _say_what_was_written(files, data, remark, form)
    if form is Format.JSON:
        paths = {"output": files.media, "side_file": files.side, "sheet": files.sheet if sheet else None}
        emit({**data, "paths": {name: path and os.path.abspath(path) for name, path in paths.items()}})


def chosen_methods(request: Request, options: MethodOptions) -> tuple[AccelConfig, str]:
    """The configuration that the options mean for the model, and a word for where it comes from."""
    if request.recorded is not None:
        return AccelConfig.from_dict(request.recorded["acceleration"]), "as recorded"
    folder = demo.WEIGHTS if request.model == "demo" else Path(request.model).expanduser()
    return methods.resolve(options, folder if folder.is_dir() else None)


def load_ready(request: Request, config: AccelConfig, device: str, weights: str | None = None) -> Ready:
    """Loads the pipeline that a request asks for, onto a device; `weights` is their hash, if it is known already."""
    from accel.pipelines.loading import weights_folder, weights_hash

    check_offload(request, [config])
    dtype = number_format(request, device)
    began = time.perf_counter()
    pipe = load(request, device, dtype)
    seconds = time.perf_counter() - began
    folder = weights_folder(pipe)
    if weights is None and folder is not None:
        weights = weights_hash(folder)
    recorded.check(request, type(pipe).__name__, weights)
    return Ready(pipe, replace(request, dtype=dtype, device=device), config, weights, seconds)


def _what(ready: Ready, arguments: dict[str, Any]) -> str:
    """The run that is about to begin, in one line."""
    request, pipe = ready.request, ready.pipe
    value = {name: p.default for name, p in inspect.signature(pipe.__call__).parameters.items()} | arguments
    size = f" ({request.demo_size})" if request.demo_size else ""
    parts = [f"{request.model}{size}: {type(pipe).__name__}"]
    if value.get("height") and value.get("width"):
        parts.append(f"{value['width']}x{value['height']}")
    if value.get("num_frames"):
        parts.append(f"{value['num_frames']} frames")
    parts.append(f"{value.get('num_inference_steps')} steps")
    if isinstance(value.get("guidance_scale"), (int, float)):
        parts.append(f"guidance {value['guidance_scale']:g}")
    parts += [f"seed {request.seed}", f"{pipe.dtype} on {request.device}".removeprefix("torch.")]
    return ", ".join(parts)


def _say_what_ran(done: Done, comparison: dict[str, Any] | None, form: Format) -> None:
    if done.summary is not None:
        say(str(done.summary), form)
    for line in dense_comparison.lines(comparison) if comparison is not None else []:
        say(line, form)


def _say_what_was_written(files: OutputFiles, data: dict[str, Any], remark: str, form: Format) -> None:
    output, seconds, replay = (data[name] for name in ("output", "seconds", "replay"))
    if data["comparison"] is not None:
        say(f"{files.sheet}: both, frame by frame", form)
    what = f"{output['width']}x{output['height']}"
    if output["fps"] is not None:
        frames = "1 frame" if output["frames"] == 1 else f"{output['frames']} frames"
        what = f"{frames} of {what} at {output['fps']:g} fps"
    say(f"{files.media}: {what}{f', {remark}' if remark else ''}", form)
    say(f"{files.side}: all that made it, for accel generate --replay", form)
    say(f"{seconds['call']:.1f} s to generate, after {seconds['load']:.1f} s to load", form)
    if replay is not None and replay["same_bits"]:
        say("same bits as recorded", form)
    elif replay is not None:
        here, there = output["frames_sha256"][:16], str(replay["recorded_sha256"])[:16]
        note(f"the bits differ from the recorded ones: the frames' sha256 is {here}, recorded was {there}")
