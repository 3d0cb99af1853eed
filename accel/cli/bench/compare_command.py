"""`accel compare`: results beside each other, from settings or from what `accel bench` has kept."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from accel.cli import request
from accel.cli.bench.command import Wanted
from accel.cli.libraries import quiet_libraries
from accel.cli.options import CALL, NUMBER, WHOLE, Dtype, option
from accel.cli.printing import Format
from accel.errors import AccelError
from accel.reporting.files import check_folder, check_free

_WHAT, _HOW, _WHERE = "What to compare", "Model and machine", "Output"
_OF_RUNS = ("size", "dtype", "device", *CALL)


def compare(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of accel bench. If left out, the settings are run, each once, and kept in outputs/compare/.",
            metavar="FOLDER",
            show_default=False,
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        option(
            _WHAT,
            "As for accel bench; of a folder, the name of one that it holds. May be repeated.",
            "--setting",
            "-s",
            metavar="TEXT",
        ),
    ] = None,
    baseline: Annotated[
        str | None, option(_WHAT, "The setting that others are compared with; plain if left out.", metavar="NAME")
    ] = None,
    prompt: Annotated[
        str | None, option(_WHAT, "What to show; of a folder, which of its prompts.", metavar="TEXT")
    ] = None,
    seed: Annotated[int | None, option(_WHAT, "Start of the noise; 0 if left out.", min=0, **WHOLE)] = None,
    negative_prompt: Annotated[str | None, option(_HOW, "What not to show.", metavar="TEXT")] = None,
    num_inference_steps: Annotated[
        int | None, option(_HOW, "Denoising steps.", "--num-inference-steps", "--steps", **WHOLE)
    ] = None,
    guidance_scale: Annotated[float | None, option(_HOW, "How closely to follow the prompt.", **NUMBER)] = None,
    height: Annotated[int | None, option(_HOW, "Pixels.", **WHOLE)] = None,
    width: Annotated[int | None, option(_HOW, "Pixels.", **WHOLE)] = None,
    num_frames: Annotated[int | None, option(_HOW, "Frames of a video.", **WHOLE)] = None,
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
    dtype: Annotated[Dtype | None, option(_HOW, "float32, bfloat16 or float16.", metavar="NAME")] = None,
    device: Annotated[str | None, option(_HOW, "Such as cuda or cpu; the GPU if there is one.", metavar="NAME")] = None,
    output: Annotated[
        Path | None,
        option(
            _WHERE,
            "The sheet to write, a .png file; the film is called so too. If left out: compare.png in the folder.",
            "--output",
            "-o",
            metavar="FILE",
        ),
    ] = None,
    overwrite: Annotated[bool, option(_WHERE, "Replace files that exist.", "--overwrite")] = False,
    fps: Annotated[float | None, option(_WHERE, "Frames a second.", **NUMBER)] = None,
    form: Annotated[
        Format,
        option(_WHERE, "human, or json: one object on stdout, all else on stderr.", "--format", metavar="NAME"),
    ] = Format.HUMAN,
) -> None:
    """Shows settings beside each other: a table, a sheet of the same frames with what differs, and a film."""
    given = {name: value for name, value in locals().items() if value is not None}
    if output is not None:
        if output.suffix.lower() != ".png":
            raise AccelError(f"{output} is not the name of a .png file; try -o {output.with_suffix('.png')}")
        check_folder(output.expanduser().parent)
        check_free([output.expanduser()], overwrite=overwrite)
    if fps is not None and not 1 <= fps <= 240:
        raise AccelError(f"--fps {fps:g} is not possible; it is from 1 to 240")
    quiet_libraries(bars=form is Format.HUMAN and sys.stderr.isatty() and (model or "demo") != "demo")
    from accel.cli.bench.compare_run import Shown, carry_out
    from accel.cli.bench.results import Results

    if folder is not None:
        extra = next((name for name in (*_OF_RUNS, "model") if name in given), None)
        if extra is not None:
            raise AccelError(f"{folder} holds finished runs; leave {request.option(extra)} out")
        results, names = Results.read(folder.expanduser()), tuple(setting or ())
    else:
        from accel.cli.bench.run import measured

        results, names = measured(_wanted(given, setting or [], form)), ()
    carry_out(results, Shown(names, baseline, prompt, seed, output and output.expanduser(), overwrite, fps), form)


def _wanted(given: dict[str, object], settings: list[str], form: Format) -> Wanted:
    """One run of each setting."""
    from accel.measure.verdict import LEAST_PSNR
    from accel.pipelines.demo.held_out import held_out

    model, seed = str(given.get("model", "demo")), int(str(given.get("seed", 0)))
    prompt = given.get("prompt")
    if prompt is None and model != "demo":
        raise AccelError("there is no prompt; give one with --prompt")
    text = held_out()[0].caption() if prompt is None else str(prompt)
    dtype = given.get("dtype")
    asked = request.Request(
        prompt=text,
        seed=seed,
        model=model,
        size=given.get("size"),  # type: ignore[arg-type]
        call={name: given[name] for name in CALL if name in given},
        dtype=dtype.value if isinstance(dtype, Dtype) else None,
        device=given.get("device"),  # type: ignore[arg-type]
    )
    return Wanted(
        base=asked,
        settings=tuple(settings),
        settings_file=None,
        baseline=str(given.get("baseline", "plain")),
        fewer_steps=False,
        prompts=(text,),
        seeds=(seed,),
        repeats=1,
        batches=(1,),
        warmup=2,
        least_psnr=LEAST_PSNR,
        lpips=None,
        clip_model=None,
        clips="first",
        folder=None,
        fresh=False,
        retry=False,
        command=f"accel {shlex.join(sys.argv[1:])}",
        form=form,
        # Apart from those of accel bench, whose plan stays and whose runs may have left no clips to be shown.
        kind="compare",
    )
