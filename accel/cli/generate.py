"""`accel generate`: from its options to a request."""

from __future__ import annotations

import secrets
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from accel.cli import methods, outputs, request
from accel.cli.libraries import quiet_libraries
from accel.cli.printing import Format
from accel.errors import AccelError

_WHAT, _WITH, _HOW, _WHERE = "What to make", "Acceleration", "Model and machine", "Output"
_CALL = ("negative_prompt", "num_inference_steps", "guidance_scale", "height", "width", "num_frames")
_WITH_REPLAY = ("replay", "output", "overwrite", "form")


class Dtype(StrEnum):
    """Number formats of the weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Offload(StrEnum):
    """Ways to keep weights in the main memory while they are not needed."""

    MODEL = "model"
    GROUP = "group"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a whole number") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a number") from error


_WHOLE: dict[str, Any] = {"parser": _whole, "metavar": "N"}
_NUMBER: dict[str, Any] = {"parser": _number, "metavar": "X"}


def _option(panel: str, help_text: str, *names: str, **rules: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False, **rules)


def generate(
    prompt: Annotated[str | None, _option(_WHAT, "What to show.", metavar="TEXT")] = None,
    negative_prompt: Annotated[str | None, _option(_WHAT, "What not to show.", metavar="TEXT")] = None,
    image: Annotated[str | None, _option(_WHAT, "Picture to start from.", metavar="FILE")] = None,
    num_inference_steps: Annotated[
        int | None, _option(_WHAT, "Denoising steps.", "--num-inference-steps", "--steps", **_WHOLE)
    ] = None,
    guidance_scale: Annotated[float | None, _option(_WHAT, "How closely to follow the prompt.", **_NUMBER)] = None,
    height: Annotated[int | None, _option(_WHAT, "Pixels.", **_WHOLE)] = None,
    width: Annotated[int | None, _option(_WHAT, "Pixels.", **_WHOLE)] = None,
    num_frames: Annotated[int | None, _option(_WHAT, "Frames of a video.", **_WHOLE)] = None,
    seed: Annotated[
        int | None,
        _option(
            _WHAT,
            "Start of the noise; drawn and reported if left out.",
            min=0,
            **_WHOLE,
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        _option(
            _WHAT,
            "Make the result of this side file again, and say whether the bits are the same. "
            "Beside it only --output, --overwrite and --format can be given.",
            metavar="FILE.json",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        _option(
            _WITH,
            "quality, balanced or fast; none is the plain pipeline. If left out: balanced.",
            metavar="NAME",
        ),
    ] = None,
    config: Annotated[Path | None, _option(_WITH, "JSON or YAML file of methods.", metavar="FILE")] = None,
    cache: Annotated[
        list[str] | None,
        _option(_WITH, "delta or none; may be repeated. `accel list` has them all.", metavar="NAME"),
    ] = None,
    attention: Annotated[str | None, _option(_WITH, "dense, or a sparse attention.", metavar="NAME")] = None,
    quantize: Annotated[str | None, _option(_WITH, "A number format for the linear layers.", metavar="NAME")] = None,
    set_: Annotated[
        list[str] | None,
        _option(_WITH, "One setting, as in cache.interval=3; may be repeated.", "--set", metavar="A.B=C"),
    ] = None,
    compile_: Annotated[bool, _option(_WITH, "Compile the transformer's blocks.", "--compile")] = False,
    compare_dense: Annotated[
        bool,
        _option(
            _WITH,
            "Run the plain pipeline too and report speed-up, likeness and a contact sheet.",
            "--compare-dense",
        ),
    ] = False,
    model: Annotated[
        str | None,
        _option(
            _HOW,
            "demo (the built-in model, the default), a folder, or a hub id.",
            "--model",
            "-m",
            metavar="MODEL",
        ),
    ] = None,
    size: Annotated[
        str | None, _option(_HOW, "Of the demo: standard (65 frames) or quick (9).", metavar="NAME")
    ] = None,
    lora: Annotated[list[str] | None, _option(_HOW, "File, folder or hub id; may be repeated.", metavar="PATH")] = None,
    dtype: Annotated[Dtype | None, _option(_HOW, "float32, bfloat16 or float16.", metavar="NAME")] = None,
    device: Annotated[
        str | None, _option(_HOW, "Such as cuda or cpu; the GPU if there is one.", metavar="NAME")
    ] = None,
    cpu_offload: Annotated[
        Offload | None,
        _option(_HOW, "Keep weights that are not in use in main memory: model or group.", metavar="KIND"),
    ] = None,
    vae_tiling: Annotated[bool, _option(_HOW, "Decode in tiles, which takes less memory.", "--vae-tiling")] = False,
    output: Annotated[
        str | None,
        _option(
            _WHERE,
            "A file (.mp4, .gif, .png, .jpg, .webp), or a folder, which gets a numbered file. "
            "If left out: a file named by date in outputs/.",
            "--output",
            "-o",
            metavar="PATH",
        ),
    ] = None,
    overwrite: Annotated[bool, _option(_WHERE, "Replace files that exist.", "--overwrite")] = False,
    fps: Annotated[float | None, _option(_WHERE, "Frames a second.", **_NUMBER)] = None,
    form: Annotated[
        Format,
        _option(_WHERE, "human, or json: one object on stdout, all else on stderr.", "--format", metavar="NAME"),
    ] = Format.HUMAN,
) -> None:
    """Makes a video or an image from a prompt, accelerated, and says what the acceleration did.

    A JSON file beside the result holds all that made it; --replay makes the same again.
    """
    given = {name: value for name, value in locals().items() if value is not None and value is not False}
    target = outputs.destination(output, overwrite=overwrite, compare=compare_dense)
    wanted = methods.MethodOptions()
    if replay is not None:
        extra = next((name for name in given if name not in _WITH_REPLAY), None)
        if extra is not None:
            raise AccelError(f"--replay takes its arguments from {replay}; leave {request.option(extra)} out")
        asked = request.from_side_file(replay)
    else:
        if prompt is None:
            raise AccelError('there is no prompt; try --prompt "a red circle moving left on a black background"')
        wanted = methods.MethodOptions(
            preset, config, attention, tuple(cache or ()), quantize, methods.settings(set_ or ())
        )
        asked = request.Request(
            prompt=prompt,
            seed=secrets.randbelow(2**32) if seed is None else seed,
            model=model or "demo",
            size=size,
            call={name: given[name] for name in _CALL if name in given},
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
    quiet_libraries(bars=form is Format.HUMAN and sys.stderr.isatty() and asked.model != "demo")
    from accel.cli.run_generate import carry_out

    carry_out(asked, wanted, target, form)
