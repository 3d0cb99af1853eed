"""`accel generate`: from its options to a request."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from accel.cli import outputs
from accel.cli.groups import Call, Compile, Fps, Methods, Model, Overwrite
from accel.cli.job.processes import Processes, alone
from accel.cli.job.prompts import read
from accel.cli.libraries import quiet_libraries
from accel.cli.methods import MethodOptions
from accel.cli.options import WHAT, WHERE, WITH, given_options, option, whole, with_groups
from accel.cli.printing import Format, FormatOption
from accel.cli.request import EXAMPLE, Request, from_side_file, option_of
from accel.errors import AccelError

_WITH_REPLAY = ("replay", "output", "overwrite", "form")


@with_groups
def generate(
    *,
    prompt: Annotated[str | None, option(WHAT, "What to show.", metavar="TEXT")] = None,
    prompts: Annotated[
        Path | None,
        option(
            WHAT,
            "Instead of --prompt: a text file with a prompt on each line, as text or as a JSON object with settings "
            "of its own; one output for each in the folder --output. The other options hold for all lines. Started "
            "again, it makes what is missing.",
            metavar="FILE",
        ),
    ] = None,
    call: Call,
    seed: Annotated[
        int | None,
        option(
            WHAT,
            "Start of the noise; drawn and reported if left out. With --prompts: of line 1, 0 if left out; each "
            "further line takes the next.",
            **whole(0),
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        option(
            WHAT,
            "Make the result of this side file again, and say whether the bits are the same. "
            "Beside it only --output, --overwrite and --format can be given.",
            metavar="FILE.json",
        ),
    ] = None,
    acceleration: Methods,
    compile_: Compile = False,
    compare_dense: Annotated[
        bool,
        option(
            WITH,
            "Run the plain pipeline too and report speed-up, likeness and a contact sheet.",
            "--compare-dense",
        ),
    ] = False,
    model: Model,
    output: Annotated[
        str | None,
        option(
            WHERE,
            "A file (.mp4, .gif, .png, .jpg, .webp), or a folder, which gets a numbered file. "
            "If left out: a file named by date in outputs/, or with --prompts, a folder named as the file.",
            "--output",
            "-o",
            metavar="PATH",
        ),
    ] = None,
    overwrite: Overwrite = False,
    fps: Fps = None,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Makes a video or an image from a prompt, or many from a file, accelerated; says what the acceleration did.

    Where no method, preset or configuration is named, the accel_config.json beside the model counts, or else balanced.
    A JSON file beside the result holds all that made it; --replay makes the same again.
    """
    given = given_options(locals())
    if prompts is None:
        alone("accel generate without --prompts")
    if replay is not None:
        extra = next((name for name in given if name not in _WITH_REPLAY), None)
        if extra is not None:
            raise AccelError(f"--replay takes its arguments from {replay}; leave {option_of(extra)} out")
        target = outputs.destination(output, overwrite=overwrite, compare=False)
        _one(from_side_file(replay), MethodOptions(), target, form)
        return
    if prompts is not None and prompt is not None:
        raise AccelError("--prompt and --prompts both say what to show; give one of the two")
    if prompts is not None and compare_dense:
        raise AccelError("--compare-dense compares one run; leave it out, or give one prompt with --prompt")
    wanted = acceleration.read()

    def asked(text: str, start: int) -> Request:
        return model.request(text, start, call, fps=fps, compile=compile_, compare_dense=compare_dense)

    if prompts is not None:
        _many(prompts.expanduser(), output, lambda text: asked(text, seed or 0), wanted, overwrite=overwrite, form=form)
        return
    if prompt is None:
        raise AccelError(f"there is no prompt; try --prompt {EXAMPLE}, or --prompts FILE")
    target = outputs.destination(output, overwrite=overwrite, compare=compare_dense)
    _one(asked(prompt, secrets.randbelow(2**32) if seed is None else seed), wanted, target, form)


def _one(asked: Request, wanted: MethodOptions, target: outputs.Destination, form: Format) -> None:
    quiet_libraries(asked.model, form)
    from accel.cli.run_generate import carry_out

    carry_out(asked, wanted, target, form)


def _many(
    file: Path,
    output: str | None,
    asked: Callable[[str], Request],
    wanted: MethodOptions,
    *,
    overwrite: bool,
    form: Format,
) -> None:
    processes = Processes.of_environment()
    with processes.one_voice():
        folder = outputs.folder_for(file, output)
        lines = read(file)
        base = asked(lines[0].prompt)
        quiet_libraries(base.model, form, silent=not processes.local_main)
        from accel.cli.job.run import Job, carry_out

        carry_out(Job(file, lines, folder, base, wanted, overwrite, form), processes)
