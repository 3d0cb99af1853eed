"""`accel profile`: from its options to a run under the profiler."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from accel.cli import methods
from accel.cli.libraries import quiet_libraries
from accel.cli.options import CALL, NUMBER, WHOLE, Dtype, Offload, option
from accel.cli.printing import Format
from accel.cli.request import Request
from accel.errors import AccelError
from accel.reporting.files import check_folder

_WHAT, _WITH, _HOW, _WHERE = "What to run", "Acceleration", "Model and machine", "Output"
_DEMO_PROMPT = "a red circle moving left on a black background"


def profile(
    prompt: Annotated[str | None, option(_WHAT, "What to show.", metavar="TEXT")] = None,
    negative_prompt: Annotated[str | None, option(_WHAT, "What not to show.", metavar="TEXT")] = None,
    num_inference_steps: Annotated[
        int | None,
        option(
            _WHAT,
            "Denoising steps, 8 if left out: a trace grows with them.",
            "--num-inference-steps",
            "--steps",
            **WHOLE,
        ),
    ] = None,
    guidance_scale: Annotated[float | None, option(_WHAT, "How closely to follow the prompt.", **NUMBER)] = None,
    height: Annotated[int | None, option(_WHAT, "Pixels.", **WHOLE)] = None,
    width: Annotated[int | None, option(_WHAT, "Pixels.", **WHOLE)] = None,
    num_frames: Annotated[int | None, option(_WHAT, "Frames of a video.", **WHOLE)] = None,
    seed: Annotated[int, option(_WHAT, "Start of the noise; 0 if left out.", min=0, **WHOLE)] = 0,
    preset: Annotated[
        str | None,
        option(_WITH, "quality, balanced or fast; if no method is named either, the plain pipeline.", metavar="NAME"),
    ] = None,
    config: Annotated[Path | None, option(_WITH, "JSON or YAML file of methods.", metavar="FILE")] = None,
    cache: Annotated[list[str] | None, option(_WITH, "A cache; may be repeated.", metavar="NAME")] = None,
    attention: Annotated[str | None, option(_WITH, "dense, or a sparse attention.", metavar="NAME")] = None,
    quantize: Annotated[str | None, option(_WITH, "A number format for the linear layers.", metavar="NAME")] = None,
    set_: Annotated[
        list[str] | None,
        option(_WITH, "One setting, as in cache.interval=3; may be repeated.", "--set", metavar="A.B=C"),
    ] = None,
    model: Annotated[
        str,
        option(
            _HOW,
            "demo (the built-in model, the default), a folder, or a hub id.",
            "--model",
            "-m",
            metavar="MODEL",
        ),
    ] = "demo",
    size: Annotated[str | None, option(_HOW, "Of the demo: standard (65 frames) or quick (9).", metavar="NAME")] = None,
    dtype: Annotated[Dtype | None, option(_HOW, "float32, bfloat16 or float16.", metavar="NAME")] = None,
    device: Annotated[str | None, option(_HOW, "Such as cuda or cpu; the GPU if there is one.", metavar="NAME")] = None,
    cpu_offload: Annotated[
        Offload | None,
        option(_HOW, "Keep weights that are not in use in main memory: model or group.", metavar="KIND"),
    ] = None,
    output: Annotated[
        Path | None,
        option(_WHERE, "The folder to write into; profile/ if left out.", "--output", "-o", metavar="FOLDER"),
    ] = None,
    overwrite: Annotated[bool, option(_WHERE, "Replace files that exist.", "--overwrite")] = False,
    measure_ceilings: Annotated[
        bool,
        option(_WHERE, "Measure what the device can do again, in place of what is kept of it.", "--measure-ceilings"),
    ] = False,
    form: Annotated[
        Format,
        option(_WHERE, "human, or json: one object on stdout, all else on stderr.", "--format", metavar="NAME"),
    ] = Format.HUMAN,
) -> None:
    """Shows where the time of a run goes: a table, a trace, and each layer against what the device can do."""
    given = dict(locals())
    # torch's profiler says on stderr when it begins and ends; it reads this when torch is loaded.
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")
    if prompt is None and model != "demo":
        raise AccelError("there is no prompt; give one with --prompt")
    folder = (output or Path("profile")).expanduser()
    check_folder(folder)
    asked = any(value is not None for value in (preset, config, attention, quantize)) or cache or set_
    wanted = methods.MethodOptions(
        preset if asked else methods.PLAIN,
        config,
        attention,
        tuple(cache or ()),
        quantize,
        methods.settings(set_ or ()),
    )
    request = Request(
        prompt=prompt or _DEMO_PROMPT,
        seed=seed,
        model=model,
        size=size,
        call={name: given[name] for name in CALL if given[name] is not None},
        dtype=dtype and dtype.value,
        device=device,
        cpu_offload=cpu_offload and cpu_offload.value,
    )
    quiet_libraries(bars=form is Format.HUMAN and sys.stderr.isatty() and model != "demo")
    from accel.cli.run_profile import carry_out

    carry_out(request, wanted, folder, overwrite=overwrite, again=measure_ceilings, form=form)
