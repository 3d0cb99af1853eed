"""`accel calibrate`: from its options to the runs that a method is calibrated on."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from accel.cli import methods
from accel.cli.groups import Call, Model, Overwrite, Prompts, Set
from accel.cli.job.processes import alone
from accel.cli.libraries import quiet_libraries
from accel.cli.options import WHAT, WHERE, WITH, option, whole, with_groups
from accel.cli.printing import Format, FormatOption
from accel.errors import AccelError
from accel.reporting.files import check_free, check_parent


class Calibrated(StrEnum):
    """Methods that take a calibration."""

    FLASHBLOCK = "flashblock"
    MIXED = "mixed"
    NVFP4 = "nvfp4"

    @property
    def keyword(self) -> str:
        """The option of `accel generate` that names the method."""
        return "cache" if self is Calibrated.FLASHBLOCK else "quantize"


@with_groups
def calibrate(
    *,
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
    prompts: Prompts,
    call: Call,
    seed: Annotated[
        int | None,
        option(WHAT, "Of the first run, 0 if left out; each further run takes the next.", **whole(0)),
    ] = None,
    attention: Annotated[
        str | None, option(WITH, "The sparse attention that will stand beside the method.", metavar="NAME")
    ] = None,
    set_: Set = None,
    model: Model,
    output: Annotated[
        Path | None, option(WHERE, "The .json file to write; it must be given.", "--output", "-o", metavar="FILE")
    ] = None,
    overwrite: Overwrite = False,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Measures on runs of a model what a method needs to know of it, and writes a file for its setting `calibration`.

    One run for each prompt. They compute everything and are slower than plain ones; the more their prompts differ, the
    better.
    """
    alone("accel calibrate")
    target = _target(output, method, overwrite=overwrite)
    wanted = methods.MethodOptions(
        attention=attention,
        cache=(method.value,) if method.keyword == "cache" else (),
        quantize=method.value if method.keyword == "quantize" else None,
        settings=methods.settings(set_ or ()),
    )
    texts = prompts.texts()
    if not texts:
        raise AccelError("there is no prompt: give some with --prompt, or a file with one on each line with --prompts")
    requests = [model.request(text, (seed or 0) + number, call) for number, text in enumerate(texts)]
    quiet_libraries(model.name, form)
    from accel.cli.run_calibrate import carry_out

    carry_out(method, requests, wanted, target, overwrite=overwrite, form=form)


def _target(output: Path | None, method: Calibrated, *, overwrite: bool) -> Path:
    if output is None:
        raise AccelError(f"there is no --output: name the file that --set {method.keyword}.calibration will take")
    path = output.expanduser()
    if path.is_dir() or path.suffix.lower() != ".json":
        raise AccelError(f"{path} is not the name of a .json file; try -o {path / 'calibration.json'}")
    check_parent(path)
    check_free([path], overwrite=overwrite)
    return path
