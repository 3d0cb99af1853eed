"""`accel calibrate`: the work, from loading to the file that is written."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from accel.cli import methods
from accel.cli.calibrate import Calibrated
from accel.cli.call import call_arguments, parameters_of
from accel.cli.methods import MethodOptions
from accel.cli.once import call_once
from accel.cli.prepare import check_offload, load, number_format, place
from accel.cli.printing import Format, emit, say
from accel.cli.request import Request, option_of
from accel.measure.calibration import calibrate_flashblock, calibrate_mixed, calibrate_nvfp4
from accel.reporting.files import write_together

_CALIBRATORS: dict[Calibrated, Any] = {
    Calibrated.FLASHBLOCK: calibrate_flashblock,
    Calibrated.MIXED: calibrate_mixed,
    Calibrated.NVFP4: calibrate_nvfp4,
}


def carry_out(
    method: Calibrated, requests: list[Request], options: MethodOptions, target: Path, *, overwrite: bool, form: Format
) -> None:
    """Loads, makes the runs, writes and reports; raises for everything that keeps the file from being written."""
    config, _ = methods.resolve(options, None)
    (settings,) = (each for each in config.methods if each.method == method)
    first = requests[0]
    check_offload(first, [config])
    if first.model != "demo":
        say(f"loading {first.model}", form)
    device = place(first)
    dtype = number_format(first, device)
    pipe = load(first, device, dtype)
    # All are looked at before the first takes its time.
    arguments = [call_arguments(pipe, replace(each, dtype=dtype, device=device)) for each in requests]
    steps = first.call.get("num_inference_steps", parameters_of(pipe)["num_inference_steps"].default)
    say(f"calibrating {methods.describe(config)}", form)
    seconds: list[float] = []

    def run(number: int) -> None:
        name = f"run {number + 1} of {len(requests)}"
        say(f"{name}: {steps} steps, seed {requests[number].seed}, {requests[number].prompt!r}", form)
        hidden = form is Format.JSON or not sys.stderr.isatty()
        pipe.set_progress_bar_config(disable=hidden, desc=name)
        # What it looks like is not needed.
        made = call_once(pipe, requests[number], {**arguments[number], "output_type": "latent"})
        seconds.append(made.seconds)

    began = time.perf_counter()
    runs = [partial(run, number) for number in range(len(requests))]
    found = _CALIBRATORS[method](pipe, runs, config=settings, attention=config.attention)

    def write(path: Path) -> None:
        found.save(path)

    write_together({target: write}, overwrite=overwrite)
    command = _next(method, first, options, target)
    say(f"{target}: {found.describe()}", form)
    say(f"{time.perf_counter() - began:.1f} s to measure; the file holds for these weights and settings", form)
    say(f"use it with\n  {command}", form)
    if form is Format.JSON:
        made = [{"prompt": r.prompt, "seed": r.seed, "seconds": s} for r, s in zip(requests, seconds, strict=True)]
        emit(
            {
                "method": method.value,
                "model": first.model,
                "output": os.path.abspath(target),
                "steps": steps,
                "runs": made,
                "summary": found.describe(),
                "next": command,
            }
        )


def _next(method: Calibrated, request: Request, options: MethodOptions, target: Path) -> str:
    """The command that makes the first prompt's result with the calibration."""
    words = ["accel", "generate", "--prompt", request.prompt]
    given = {"model": request.model if request.model != "demo" else None, "size": request.size, **request.call}
    given |= {name: getattr(request, name) for name in ("revision", "variant", "dtype", "device", "cpu_offload")}
    given |= {"image": request.image and request.image.name}
    given |= {"attention": options.attention, method.keyword: method.value}
    for name, value in given.items():
        if value is not None:
            words += [option_of(name), str(value)]
    for lora in request.loras:
        words += ["--lora", lora.as_option()]
    words += ["--vae-tiling"] if request.vae_tiling else []
    for path, value in options.settings:
        words += ["--set", f"{path}={json.dumps(value)}"]
    text = str(target)
    # A setting is read as YAML, in which some names of files mean something else.
    words += ["--set", f"{method.keyword}.calibration={text if _plain(text) else json.dumps(text)}"]
    return shlex.join(words)


def _plain(text: str) -> bool:
    try:
        return yaml.safe_load(text) == text
    except yaml.YAMLError:
        return False
