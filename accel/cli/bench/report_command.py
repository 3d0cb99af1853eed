"""`accel report`: a page of what `accel bench` has kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accel.cli.groups import Overwrite
from accel.cli.job.processes import alone
from accel.cli.libraries import quiet_libraries
from accel.cli.options import WHERE, option
from accel.cli.printing import Format, FormatOption
from accel.errors import AccelError
from accel.reporting.files import check_parent


def report(
    folder: Annotated[Path, typer.Argument(help="A folder of accel bench.", metavar="FOLDER", show_default=False)],
    output: Annotated[
        Path | None,
        option(
            WHERE,
            "The page to write, an .html file; the plot beside it is called so too. If left out: report.html in the "
            "folder.",
            "--output",
            "-o",
            metavar="FILE",
        ),
    ] = None,
    overwrite: Overwrite = False,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Writes one HTML page that opens anywhere: speed and quality, the results, and what each method did where."""
    alone("accel report")
    target = (output or folder / "report.html").expanduser()
    if target.suffix.lower() not in (".html", ".htm"):
        raise AccelError(f"{target} is not the name of an .html file; try -o {target.with_suffix('.html')}")
    if output is not None:
        check_parent(target)
    quiet_libraries()
    from accel.cli.bench.report_run import carry_out

    carry_out(folder.expanduser(), target, overwrite=overwrite, form=form)
