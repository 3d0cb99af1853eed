"""`accel generate`: from its options to a request."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from accel.cli import methods, outputs, request
from accel.cli.job.processes import Processes
from accel.cli.job.prompts import read
from accel.cli.libraries import quiet_libraries
from accel.cli.options import CALL, NUMBER, WHOLE, Dtype, Offload, option
from accel.cli.printing import Format
from accel.errors import AccelError

_WHAT, _WITH, _HOW, _WHERE = "What to make", "Acceleration", "Model and machine", "Output"
_WITH_REPLAY = ("replay", "output", "overwrite", "form")


def generate(
    prompt: Annotated[str | None, option(_WHAT, "What to show.", metavar="TEXT")] = None,
    prompts: Annotated[
        Path | None,
        option(
            _WHAT,
            "Instead of --prompt: a text file with a prompt on each line, as text or as a JSON object with settings "
            "of its own; one output for each in the folder --output. The other options hold for all lines. Started "
            "again, it makes what is missing.",
            metavar="FILE",
        ),
    ] = None,
    negative_prompt: Annotated[str | None, option(_WHAT, "What not to show.", metavar="TEXT")] = None,
    image: Annotated[str | None, option(_WHAT, "Picture to start from.", metavar="FILE")] = None,
    num_inference_steps: Annotated[
        int | None, option(_WHAT, "Denoising steps.", "--num-inference-steps", "--steps", **WHOLE)
    ] = None,
    guidance_scale: Annotated[float | None, option(_WHAT, "How closely to follow the prompt.", **NUMBER)] = None,
    height: Annotated[int | None, option(_WHAT, "Pixels.", **WHOLE)] = None,
    width: Annotated[int | None, option(_WHAT, "Pixels.", **WHOLE)] = None,
    num_frames: Annotated[int | None, option(_WHAT, "Frames of a video.", **WHOLE)] = None,
    seed: Annotated[
        int | None,
        option(
            _WHAT,
            "Start of the noise; drawn and reported if left out. With --prompts: of line 1, 0 if left out; each "
            "further line takes the next.",
            min=0,
            **WHOLE,
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        option(
            _WHAT,
            "Make the result of this side file again, and say whether the bits are the same. "
            "Beside it only --output, --overwrite and --format can be given.",
            metavar="FILE.json",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        option(
            _WITH,
            "quality, balanced or fast; none is the plain pipeline. If left out: balanced.",
            metavar="NAME",
        ),
    ] = None,
    config: Annotated[Path | None, option(_WITH, "JSON or YAML file of methods.", metavar="FILE")] = None,
    cache: Annotated[
        list[str] | None,
        option(_WITH, "delta or none; may be repeated. `accel list` has them all.", metavar="NAME"),
    ] = None,
    attention: Annotated[str | None, option(_WITH, "dense, or a sparse attention.", metavar="NAME")] = None,
    quantize: Annotated[str | None, option(_WITH, "A number format for the linear layers.", metavar="NAME")] = None,
    set_: Annotated[
        list[str] | None,
        option(_WITH, "One setting, as in cache.interval=3; may be repeated.", "--set", metavar="A.B=C"),
    ] = None,
    compile_: Annotated[bool, option(_WITH, "Compile the transformer's blocks.", "--compile")] = False,
    compare_dense: Annotated[
        bool,
        option(
            _WITH,
            "Run the plain pipeline too and report speed-up, likeness and a contact sheet.",
            "--compare-dense",
        ),
    ] = False,
    model: Annotated[
        str | None,
        option(
            _HOW,
            "demo (the built-in model, the default), a folder, or a hub id.",
            "--model",
            "-m",
            metavar="MODEL",
        ),
    ] = None,
    size: Annotated[str | None, option(_HOW, "Of the demo: standard (65 frames) or quick (9).", metavar="NAME")] = None,
    lora: Annotated[list[str] | None, option(_HOW, "File, folder or hub id; may be repeated.", metavar="PATH")] = None,
    dtype: Annotated[Dtype | None, option(_HOW, "float32, bfloat16 or float16.", metavar="NAME")] = None,
    device: Annotated[str | None, option(_HOW, "Such as cuda or cpu; the GPU if there is one.", metavar="NAME")] = None,
    cpu_offload: Annotated[
        Offload | None,
        option(_HOW, "Keep weights that are not in use in main memory: model or group.", metavar="KIND"),
    ] = None,
    vae_tiling: Annotated[bool, option(_HOW, "Decode in tiles, which takes less memory.", "--vae-tiling")] = False,
    output: Annotated[
        str | None,
        option(
            _WHERE,
            "A file (.mp4, .gif, .png, .jpg, .webp), or a folder, which gets a numbered file. "
            "If left out: a file named by date in outputs/, or with --prompts, a folder named as the file.",
            "--output",
            "-o",
            metavar="PATH",
        ),
    ] = None,
    overwrite: Annotated[bool, option(_WHERE, "Replace files that exist.", "--overwrite")] = False,
    fps: Annotated[float | None, option(_WHERE, "Frames a second.", **NUMBER)] = None,
    form: Annotated[
        Format,
        option(_WHERE, "human, or json: one object on stdout, all else on stderr.", "--format", metavar="NAME"),
    ] = Format.HUMAN,
) -> None:
    """Makes a video or an image from a prompt, or many from a file, accelerated; says what the acceleration did.

    A JSON file beside the result holds all that made it; --replay makes the same again.
    """
    given = {name: value for name, value in locals().items() if value is not None and value is not False}
    if replay is not None:
        extra = next((name for name in given if name not in _WITH_REPLAY), None)
        if extra is not None:
            raise AccelError(f"--replay takes its arguments from {replay}; leave {request.option(extra)} out")
        target = outputs.destination(output, overwrite=overwrite, compare=False)
        _one(request.from_side_file(replay), methods.MethodOptions(), target, form)
        return
    if prompts is not None and prompt is not None:
        raise AccelError("--prompt and --prompts both say what to show; give one of the two")
    if prompts is not None and compare_dense:
        raise AccelError("--compare-dense compares one run; leave it out, or give one prompt with --prompt")
    wanted = methods.MethodOptions(
        preset, config, attention, tuple(cache or ()), quantize, methods.settings(set_ or ())
    )

    def asked(text: str, start: int) -> request.Request:
        return request.Request(
            prompt=text,
            seed=start,
            model=model or "demo",
            size=size,
            call={name: given[name] for name in CALL if name in given},
            image=request.image_file(image) if image is not None else None,
            fps=fps,
            dtype=dtype and dtype.value,
            device=device,
            cpu_offload=cpu_offload and cpu_offload.value,
            compile=compile_,
            vae_tiling=vae_tiling,
            loras=tuple(request.lora(name) for name in lora or ()),
            compare_dense=compare_dense,
        )

    if prompts is not None:
        _many(prompts.expanduser(), output, lambda text: asked(text, seed or 0), wanted, overwrite=overwrite, form=form)
        return
    if prompt is None:
        raise AccelError(
            'there is no prompt; try --prompt "a red circle moving left on a black background", or --prompts FILE'
        )
    target = outputs.destination(output, overwrite=overwrite, compare=compare_dense)
    _one(asked(prompt, secrets.randbelow(2**32) if seed is None else seed), wanted, target, form)


def _one(asked: request.Request, wanted: methods.MethodOptions, target: outputs.Destination, form: Format) -> None:
    quiet_libraries(bars=_bars(asked, form))
    from accel.cli.run_generate import carry_out

    carry_out(asked, wanted, target, form)


def _many(
    file: Path,
    output: str | None,
    asked: Callable[[str], request.Request],
    wanted: methods.MethodOptions,
    *,
    overwrite: bool,
    form: Format,
) -> None:
    processes = Processes.of_environment()
    with processes.one_voice():
        folder = outputs.folder_for(file, output)
        lines = read(file)
        base = asked(lines[0].prompt)
        quiet_libraries(bars=processes.local_main and _bars(base, form))
        from accel.cli.job.run import Job, carry_out

        carry_out(Job(file, lines, folder, base, wanted, overwrite, form), processes)


def _bars(asked: request.Request, form: Format) -> bool:
    return form is Format.HUMAN and sys.stderr.isatty() and asked.model != "demo"
