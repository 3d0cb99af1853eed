"""`accel profile`: from its options to a run under the profiler."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from accel.cli.groups import Call, Methods, Model, Overwrite, Seed
from accel.cli.job.processes import alone
from accel.cli.libraries import quiet_libraries
from accel.cli.methods import PLAIN
from accel.cli.options import WHAT, WHERE, option, with_groups
from accel.cli.printing import Format, FormatOption
from accel.cli.request import EXAMPLE
from accel.errors import AccelError
from accel.reporting.files import check_folder


@with_groups
def profile(
    *,
    prompt: Annotated[
        str | None, option(WHAT, f"What to show; for the demo, {EXAMPLE} if left out.", metavar="TEXT")
    ] = None,
    call: Call,
    seed: Seed = None,
    acceleration: Methods,
    model: Model,
    output: Annotated[
        Path | None,
        option(WHERE, "The folder to write into; profile/ if left out.", "--output", "-o", metavar="FOLDER"),
    ] = None,
    overwrite: Overwrite = False,
    measure_ceilings: Annotated[
        bool,
        option(WHERE, "Measure what the device can do again, in place of what is kept of it.", "--measure-ceilings"),
    ] = False,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Shows where the time of a run goes: a table, a trace, and each layer against what the device can do.

    Where no method, preset or configuration is named, that is the plain pipeline. It takes 8 steps unless --steps says
    otherwise: a trace grows with them.
    """
    alone("accel profile")
    # torch's profiler says on stderr when it begins and ends; it reads this when torch is loaded.
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")
    if prompt is None and model.name != "demo":
        raise AccelError("there is no prompt; give one with --prompt")
    folder = (output or Path("profile")).expanduser()
    check_folder(folder)
    wanted = acceleration.read(otherwise=PLAIN)
    request = model.request(EXAMPLE.strip('"') if prompt is None else prompt, seed or 0, call)
    quiet_libraries(model.name, form)
    from accel.cli.run_profile import carry_out

    carry_out(request, wanted, folder, overwrite=overwrite, again=measure_ceilings, form=form)
