"""`accel bench`: from its options to what is measured."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from accel.cli.groups import Call, Compile, Model, Prompts
from accel.cli.job.processes import alone
from accel.cli.libraries import quiet_libraries
from accel.cli.options import COMPARED, MUCH, WHERE, number, option, whole, with_groups
from accel.cli.printing import Format, FormatOption
from accel.cli.request import Request
from accel.errors import AccelError
from accel.reporting.files import check_folder

_DEMO_PROMPTS = 3
# Runs of each setting where the command does not say how often: so many that the noise is known, which
# `accel.measure.confidence.LEAST` says; its module loads torch, which a command's help must not.
_LEAST_RUNS = 3


@dataclass(frozen=True)
class Wanted:
    """What one `accel bench` was asked, as far as it is known before the model is.

    `kind` names the folder of the results below the default one, where `folder` is None; `least_psnr` None is the usual
    bound.
    """

    base: Request
    settings: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    form: Format
    settings_file: Path | None = None
    baseline: str = "plain"
    fewer_steps: bool = True
    repeats: int = 1
    batches: tuple[int, ...] = (1,)
    warmup: int = 2
    least_psnr: float | None = None
    lpips: Path | None = None
    clip_model: Path | None = None
    clips: str = "first"
    folder: Path | None = None
    fresh: bool = False
    retry: bool = False
    heat: bool = False
    kind: str = "bench"

    @property
    def command(self) -> str:
        """What was typed."""
        return f"accel {shlex.join(sys.argv[1:])}"


@with_groups
def bench(
    *,
    setting: Annotated[
        list[str] | None,
        option(
            COMPARED,
            "plain, a preset, or words such as 'cache=tdc cache.threshold=0.1 steps=20' or 'rival=magcache "
            "threshold=0.03'; 'NAME: words' gives it a name. May be repeated; if left out: the presets.",
            "--setting",
            "-s",
            metavar="TEXT",
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        option(COMPARED, "YAML or JSON file: names, each with such a text or a configuration.", metavar="FILE"),
    ] = None,
    baseline: Annotated[
        str, option(COMPARED, "The setting that others are compared with; plain if left out.", metavar="NAME")
    ] = "plain",
    no_fewer_steps: Annotated[
        bool, option(COMPARED, "Leave out the plain pipeline with fewer steps.", "--no-fewer-steps")
    ] = False,
    seed: Annotated[int, option(MUCH, "The first seed, 0 if left out.", **whole(0))] = 0,
    seeds: Annotated[int, option(MUCH, "Seeds for each prompt, 1 if left out.", **whole(1, 1000))] = 1,
    repeats: Annotated[
        int | None,
        option(
            MUCH,
            "How often each run is measured; if left out, as often as gives each setting three runs: once with "
            "three prompts or seeds.",
            **whole(1, 1000),
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        option(MUCH, "Results in one call, for the throughput; 1 is always measured. May be repeated.", **whole(1)),
    ] = None,
    warmup: Annotated[
        int,
        option(
            MUCH,
            "Steps of a run of each setting before the first that counts, 2 if left out; without, no speed-up is said.",
            **whole(0),
        ),
    ] = 2,
    least_psnr: Annotated[
        float | None,
        option(
            MUCH,
            "A result further than so many dB from the baseline's counts as another picture; 12 if left out.",
            **number(0, 100),
        ),
    ] = None,
    lpips: Annotated[
        Path | None,
        option(MUCH, "Folder with AlexNet's weights as torchvision publishes them, for LPIPS.", metavar="FOLDER"),
    ] = None,
    clip_model: Annotated[
        Path | None,
        option(MUCH, "Folder with a CLIP as transformers saves it, for the CLIP score.", metavar="FOLDER"),
    ] = None,
    heat: Annotated[
        bool,
        option(
            MUCH,
            "Measure error and time of each block at each step too, for the report; it takes about three more runs of "
            "each setting of Accel, and the blocks' weights twice in memory.",
            "--heat",
        ),
    ] = False,
    prompts: Prompts,
    call: Call,
    compile_: Compile = False,
    model: Model,
    output: Annotated[
        Path | None,
        option(
            WHERE,
            "The folder of the results; if left out, one in outputs/bench/, another for each model, call, machine and "
            "state of Accel's code. The same command goes on where it was stopped.",
            "--output",
            "-o",
            metavar="FOLDER",
        ),
    ] = None,
    clips: Annotated[
        str, option(WHERE, "Which results to keep to look at: first (of each setting), all or none.", metavar="WHICH")
    ] = "first",
    fresh: Annotated[bool, option(WHERE, "Forget what the folder holds and measure all again.", "--fresh")] = False,
    retry: Annotated[bool, option(WHERE, "Try runs again that failed.", "--retry")] = False,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Measures settings beside each other, in speed and in quality, on a model; prints a table.

    Every finished run is kept at once: the same command goes on where it was stopped and measures nothing twice.
    """
    alone("accel bench")
    if clips not in ("first", "all", "none"):
        raise AccelError(f"--clips {clips} is not possible; it is first, all or none")
    texts = prompts.texts()
    if not texts and model.name != "demo":
        raise AccelError("there is no prompt: give some with --prompt, or a file with one on each line with --prompts")
    if output is not None:
        check_folder(output.expanduser())
    texts = list(dict.fromkeys(texts or demo_prompts(_DEMO_PROMPTS)))
    wanted = Wanted(
        base=model.request(texts[0], seed, call, compile=compile_),
        settings=tuple(setting or ()),
        prompts=tuple(texts),
        seeds=tuple(range(seed, seed + seeds)),
        form=form,
        settings_file=settings and settings.expanduser(),
        baseline=baseline,
        fewer_steps=not no_fewer_steps,
        repeats=math.ceil(_LEAST_RUNS / (len(texts) * seeds)) if repeats is None else repeats,
        batches=tuple(dict.fromkeys((1, *(batch or ())))),
        warmup=warmup,
        least_psnr=least_psnr,
        lpips=lpips and lpips.expanduser(),
        clip_model=clip_model and clip_model.expanduser(),
        clips=clips,
        folder=output and output.expanduser(),
        fresh=fresh,
        retry=retry,
        heat=heat,
    )
    quiet_libraries(model.name, form)
    from accel.cli.bench.run import carry_out

    carry_out(wanted)


def demo_prompts(count: int) -> list[str]:
    """Prompts that the built-in model was not trained on, for a benchmark of it without a prompt."""
    from accel.pipelines.demo.held_out import held_out

    return [scene.caption() for scene in held_out()[:count]]
