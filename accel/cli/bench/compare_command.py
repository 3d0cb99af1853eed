"""`accel compare`: results beside each other, from settings or from what `accel bench` has kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accel.cli.bench.command import Wanted, demo_prompts
from accel.cli.groups import Call, Compile, Fps, Model, Overwrite, Seed
from accel.cli.job.processes import alone
from accel.cli.libraries import quiet_libraries
from accel.cli.options import COMPARED, WHAT, WHERE, given_options, option, with_groups
from accel.cli.printing import Format, FormatOption
from accel.cli.request import option_of
from accel.errors import AccelError
from accel.reporting.files import check_free, check_parent

_OF_A_FOLDER = ("folder", "setting", "baseline", "prompt", "seed", "output", "overwrite", "fps", "form")


@with_groups
def compare(
    *,
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
            COMPARED,
            "As for accel bench; of a folder, the name of one that it holds. May be repeated.",
            "--setting",
            "-s",
            metavar="TEXT",
        ),
    ] = None,
    baseline: Annotated[
        str | None, option(COMPARED, "The setting that others are compared with; plain if left out.", metavar="NAME")
    ] = None,
    prompt: Annotated[
        str | None, option(WHAT, "What to show; of a folder, which of its prompts.", metavar="TEXT")
    ] = None,
    call: Call,
    seed: Seed = None,
    compile_: Compile = False,
    model: Model,
    output: Annotated[
        Path | None,
        option(
            WHERE,
            "The sheet to write, a .png file; the film is called so too. If left out: compare.png in the folder.",
            "--output",
            "-o",
            metavar="FILE",
        ),
    ] = None,
    overwrite: Overwrite = False,
    fps: Fps = None,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Shows settings beside each other: a table, a sheet of the same frames with what differs, and a film."""
    given = given_options(locals())
    alone("accel compare")
    if output is not None:
        if output.suffix.lower() != ".png":
            raise AccelError(f"{output} is not the name of a .png file; try -o {output.with_suffix('.png')}")
        check_parent(output.expanduser())
        check_free([output.expanduser()], overwrite=overwrite)
    extra = next((name for name in given if name not in _OF_A_FOLDER), None)
    if folder is not None and extra is not None:
        raise AccelError(f"{folder} holds finished runs; leave {option_of(extra)} out")
    if folder is None and prompt is None and model.name != "demo":
        raise AccelError("there is no prompt; give one with --prompt")
    quiet_libraries(model.name, form)
    from accel.cli.bench.compare_run import Shown, carry_out, check_targets
    from accel.cli.bench.results import Results

    names: tuple[str, ...] = ()
    target = output and output.expanduser()
    if folder is not None:
        results, names = Results.read(folder.expanduser()), tuple(setting or ())
    else:
        from accel.cli.bench.run import measured

        text = demo_prompts(1)[0] if prompt is None else prompt
        wanted = Wanted(
            base=model.request(text, seed or 0, call, fps=fps, compile=compile_),
            settings=tuple(setting or ()),
            prompts=(text,),
            seeds=(seed or 0,),
            form=form,
            baseline=baseline or "plain",
            fewer_steps=False,
            # Apart from those of accel bench, whose plan stays and whose runs may have left no clips to be shown.
            kind="compare",
        )
        # Before the runs, not after them.
        results = measured(wanted, lambda at, video: check_targets(at, target, video=video, overwrite=overwrite))
    carry_out(results, Shown(names, baseline, prompt, seed, target, overwrite, fps), form)
