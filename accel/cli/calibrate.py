"""`accel calibrate`: from its options to the runs that a method is calibrated on."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from accel.cli import methods
from accel.cli.libraries import quiet_libraries
from accel.cli.options import CALL, NUMBER, WHOLE, Dtype, Offload, option
from accel.cli.printing import Format
from accel.cli.request import Request
from accel.cli.several_prompts import several_prompts
from accel.errors import AccelError
from accel.reporting.files import check_folder, check_free

_WHAT, _WITH, _HOW, _WHERE = "Runs to measure", "Acceleration", "Model and machine", "Output"


class Calibrated(StrEnum):
    """Methods that take a calibration."""

    FLASHBLOCK = "flashblock"
    MIXED = "mixed"
    NVFP4 = "nvfp4"

    @property
    def keyword(self) -> str:
        """The option of `accel generate` that names the method."""
        return "cache" if self is Calibrated.FLASHBLOCK else "quantize"


def calibrate(
    method: Annotated[
        Calibrated,
        typer.Argument(
            help=(
                "flashblock: which heads to compute anew, and when. mixed: how each layer's error follows its block. "
                "nvfp4: by what each layer's activations are scaled."
            ),
            metavar="METHOD",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        list[str] | None, option(_WHAT, "What to show; one run for each, may be repeated.", metavar="TEXT")
    ] = None,
    prompts: Annotated[
        Path | None, option(_WHAT, "Instead of --prompt: a text file with a prompt on each line.", metavar="FILE")
    ] = None,
    negative_prompt: Annotated[str | None, option(_WHAT, "What not to show.", metavar="TEXT")] = None,
    num_inference_steps: Annotated[
        int | None, option(_WHAT, "Denoising steps.", "--num-inference-steps", "--steps", **WHOLE)
    ] = None,
    guidance_scale: Annotated[float | None, option(_WHAT, "How closely to follow the prompt.", **NUMBER)] = None,
    height: Annotated[int | None, option(_WHAT, "Pixels.", **WHOLE)] = None,
    width: Annotated[int | None, option(_WHAT, "Pixels.", **WHOLE)] = None,
    num_frames: Annotated[int | None, option(_WHAT, "Frames of a video.", **WHOLE)] = None,
    seed: Annotated[
        int, option(_WHAT, "Of the first run, 0 if left out; each further run takes the next.", **WHOLE)
    ] = 0,
    attention: Annotated[
        str | None, option(_WITH, "The sparse attention that will stand beside the method.", metavar="NAME")
    ] = None,
    set_: Annotated[
        list[str] | None,
        option(_WITH, "One setting, as in quantize.rotate=false; may be repeated.", "--set", metavar="A.B=C"),
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
        Path | None, option(_WHERE, "The .json file to write; it must be given.", "--output", "-o", metavar="FILE")
    ] = None,
    overwrite: Annotated[bool, option(_WHERE, "Replace a file that exists.", "--overwrite")] = False,
    form: Annotated[
        Format,
        option(_WHERE, "human, or json: one object on stdout, all else on stderr.", "--format", metavar="NAME"),
    ] = Format.HUMAN,
) -> None:
    """Measures on runs of a model what a method needs to know of it, and writes a file for its setting `calibration`.

    The runs compute everything and are slower than plain ones; the more their prompts differ, the better.
    """
    given = dict(locals())
    target = _target(output, method, overwrite=overwrite)
    wanted = methods.MethodOptions(
        attention=attention,
        cache=(method.value,) if method.keyword == "cache" else (),
        quantize=method.value if method.keyword == "quantize" else None,
        settings=methods.settings(set_ or ()),
    )
    requests = [
        Request(
            prompt=text,
            seed=seed + number,
            model=model,
            size=size,
            call={name: given[name] for name in CALL if given[name] is not None},
            dtype=dtype and dtype.value,
            device=device,
            cpu_offload=cpu_offload and cpu_offload.value,
        )
        for number, text in enumerate(_prompts(prompt or [], prompts))
    ]
    quiet_libraries(bars=form is Format.HUMAN and sys.stderr.isatty() and model != "demo")
    from accel.cli.run_calibrate import carry_out

    carry_out(method, requests, wanted, target, overwrite=overwrite, form=form)


def _target(output: Path | None, method: Calibrated, *, overwrite: bool) -> Path:
    if output is None:
        raise AccelError(f"there is no --output: name the file that --set {method.keyword}.calibration will take")
    path = output.expanduser()
    if path.is_dir() or path.suffix.lower() != ".json":
        raise AccelError(f"{path} is not the name of a .json file; try -o {path / 'calibration.json'}")
    if not path.parent.exists():
        raise AccelError(f"there is no folder {path.parent} for {path.name}; make it first")
    check_folder(path.parent)
    check_free([path], overwrite=overwrite)
    return path


def _prompts(given: list[str], file: Path | None) -> list[str]:
    found = several_prompts(given, file)
    if not found:
        raise AccelError("there is no prompt: give some with --prompt, or a file with one on each line with --prompts")
    return found
