"""`accel bench`: from its options to what is measured."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from accel.cli import request
from accel.cli.libraries import quiet_libraries
from accel.cli.options import CALL, NUMBER, WHOLE, Dtype, Offload, option
from accel.cli.printing import Format
from accel.cli.several_prompts import several_prompts
from accel.errors import AccelError
from accel.reporting.files import check_folder

_WHAT, _MUCH, _HOW, _WHERE = "What to compare", "How much to measure", "Model and machine", "Output"
_DEMO_PROMPTS = 2


@dataclass(frozen=True)
class Wanted:
    """What one `accel bench` was asked, as far as it is known before the model is.

    `kind` names the folder of the results below the default one, where `folder` is None.
    """

    base: request.Request
    settings: tuple[str, ...]
    settings_file: Path | None
    baseline: str
    fewer_steps: bool
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    repeats: int
    batches: tuple[int, ...]
    warmup: int
    least_psnr: float
    lpips: Path | None
    clip_model: Path | None
    clips: str
    folder: Path | None
    fresh: bool
    retry: bool
    command: str
    form: Format
    heat: bool = False
    kind: str = "bench"


def bench(
    setting: Annotated[
        list[str] | None,
        option(
            _WHAT,
            "plain, a preset, or words such as 'cache=tdc cache.threshold=0.1 steps=20' or 'rival=magcache "
            "threshold=0.03'; 'NAME: words' gives it a name. May be repeated; if left out: the presets.",
            "--setting",
            "-s",
            metavar="TEXT",
        ),
    ] = None,
    settings: Annotated[
        Path | None, option(_WHAT, "YAML or JSON file of names with such texts or configurations.", metavar="FILE")
    ] = None,
    baseline: Annotated[
        str, option(_WHAT, "The setting that others are compared with; plain if left out.", metavar="NAME")
    ] = "plain",
    no_fewer_steps: Annotated[
        bool, option(_WHAT, "Leave out the plain pipeline with fewer steps.", "--no-fewer-steps")
    ] = False,
    prompt: Annotated[list[str] | None, option(_MUCH, "What to show; may be repeated.", metavar="TEXT")] = None,
    prompts: Annotated[
        Path | None, option(_MUCH, "Instead of --prompt: a text file with a prompt on each line.", metavar="FILE")
    ] = None,
    seed: Annotated[int, option(_MUCH, "The first seed, 0 if left out.", min=0, **WHOLE)] = 0,
    seeds: Annotated[int, option(_MUCH, "Seeds for each prompt, 1 if left out.", min=1, max=1000, **WHOLE)] = 1,
    repeats: Annotated[
        int, option(_MUCH, "How often each run is measured, 1 if left out.", min=1, max=1000, **WHOLE)
    ] = 1,
    batch: Annotated[
        list[int] | None,
        option(_MUCH, "Results in one call, for the throughput; 1 is always measured. May be repeated.", **WHOLE),
    ] = None,
    warmup: Annotated[
        int,
        option(
            _MUCH, "Steps of a run of each setting before the first that counts; 0 says no speed-up.", min=0, **WHOLE
        ),
    ] = 2,
    least_psnr: Annotated[
        float | None,
        option(_MUCH, "In dB: a result further from the baseline's counts as another picture; 12.", **NUMBER),
    ] = None,
    lpips: Annotated[
        Path | None,
        option(_MUCH, "Folder with AlexNet's weights as torchvision publishes them, for LPIPS.", metavar="FOLDER"),
    ] = None,
    clip_model: Annotated[
        Path | None,
        option(_MUCH, "Folder with a CLIP as transformers saves it, for the CLIP score.", metavar="FOLDER"),
    ] = None,
    heat: Annotated[
        bool,
        option(
            _MUCH,
            "Measure error and time of each block at each step too, for the report; it takes about three more runs of "
            "each setting of Accel, and the blocks' weights twice in memory.",
            "--heat",
        ),
    ] = False,
    negative_prompt: Annotated[str | None, option(_HOW, "What not to show.", metavar="TEXT")] = None,
    num_inference_steps: Annotated[
        int | None, option(_HOW, "Denoising steps.", "--num-inference-steps", "--steps", **WHOLE)
    ] = None,
    guidance_scale: Annotated[float | None, option(_HOW, "How closely to follow the prompt.", **NUMBER)] = None,
    height: Annotated[int | None, option(_HOW, "Pixels.", **WHOLE)] = None,
    width: Annotated[int | None, option(_HOW, "Pixels.", **WHOLE)] = None,
    num_frames: Annotated[int | None, option(_HOW, "Frames of a video.", **WHOLE)] = None,
    image: Annotated[str | None, option(_HOW, "Picture to start from.", metavar="FILE")] = None,
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
    lora: Annotated[list[str] | None, option(_HOW, "File, folder or hub id; may be repeated.", metavar="PATH")] = None,
    dtype: Annotated[Dtype | None, option(_HOW, "float32, bfloat16 or float16.", metavar="NAME")] = None,
    device: Annotated[str | None, option(_HOW, "Such as cuda or cpu; the GPU if there is one.", metavar="NAME")] = None,
    cpu_offload: Annotated[
        Offload | None,
        option(_HOW, "Keep weights that are not in use in main memory: model or group.", metavar="KIND"),
    ] = None,
    vae_tiling: Annotated[bool, option(_HOW, "Decode in tiles, which takes less memory.", "--vae-tiling")] = False,
    compile_: Annotated[bool, option(_HOW, "Compile the transformer's blocks, in every row.", "--compile")] = False,
    output: Annotated[
        Path | None,
        option(
            _WHERE,
            "The folder of the results; if left out, one in outputs/bench/ that the model, its call and this machine "
            "name. The same command goes on where it was stopped.",
            "--output",
            "-o",
            metavar="FOLDER",
        ),
    ] = None,
    clips: Annotated[
        str, option(_WHERE, "Which results to keep to look at: first (of each setting), all or none.", metavar="WHICH")
    ] = "first",
    fresh: Annotated[bool, option(_WHERE, "Forget what the folder holds and measure all again.", "--fresh")] = False,
    retry: Annotated[bool, option(_WHERE, "Try runs again that failed.", "--retry")] = False,
    form: Annotated[
        Format,
        option(_WHERE, "human, or json: one object on stdout, all else on stderr.", "--format", metavar="NAME"),
    ] = Format.HUMAN,
) -> None:
    """Measures settings beside each other, in speed and in quality, on a model; prints a table.

    Every finished run is kept at once: the same command goes on where it was stopped and measures nothing twice.
    """
    given = dict(locals())
    if clips not in ("first", "all", "none"):
        raise AccelError(f"--clips {clips} is not possible; it is first, all or none")
    texts = several_prompts(prompt or [], prompts)
    if not texts and model != "demo":
        raise AccelError("there is no prompt: give some with --prompt, or a file with one on each line with --prompts")
    if least_psnr is not None and not 0 <= least_psnr <= 100:
        raise AccelError(f"--least-psnr {least_psnr:g} is not possible; it is from 0 to 100 dB")
    batches = tuple(dict.fromkeys((1, *(batch or ()))))
    if min(batches) < 1:
        raise AccelError(f"--batch {min(batches)} is not possible; the nearest that works is 1")
    if output is not None:
        check_folder(output.expanduser())
    if not texts:
        from accel.pipelines.demo.held_out import held_out

        texts = [scene.caption() for scene in held_out()[:_DEMO_PROMPTS]]
    from accel.measure.verdict import LEAST_PSNR

    wanted = Wanted(
        base=request.Request(
            prompt=texts[0],
            seed=seed,
            model=model,
            size=size,
            call={name: given[name] for name in CALL if given[name] is not None},
            image=request.image_file(image) if image is not None else None,
            dtype=dtype and dtype.value,
            device=device,
            cpu_offload=cpu_offload and cpu_offload.value,
            compile=compile_,
            vae_tiling=vae_tiling,
            loras=tuple(request.lora(name) for name in lora or ()),
        ),
        settings=tuple(setting or ()),
        settings_file=settings.expanduser() if settings is not None else None,
        baseline=baseline,
        fewer_steps=not no_fewer_steps,
        prompts=tuple(dict.fromkeys(texts)),
        seeds=tuple(range(seed, seed + seeds)),
        repeats=repeats,
        batches=batches,
        warmup=warmup,
        least_psnr=LEAST_PSNR if least_psnr is None else least_psnr,
        lpips=lpips and lpips.expanduser(),
        clip_model=clip_model and clip_model.expanduser(),
        clips=clips,
        folder=output.expanduser() if output is not None else None,
        fresh=fresh,
        retry=retry,
        command=f"accel {shlex.join(sys.argv[1:])}",
        form=form,
        heat=heat,
    )
    quiet_libraries(bars=form is Format.HUMAN and sys.stderr.isatty() and model != "demo")
    from accel.cli.bench.run import carry_out

    carry_out(wanted)
