"""The command `accel`.

This package's modules load torch and diffusers inside the commands only, so that `--help` and refusals of the command
line are quick.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import accel
from accel.cli import exits
from accel.cli.bench.command import bench
from accel.cli.bench.compare_command import compare
from accel.cli.bench.report_command import report
from accel.cli.calibrate import calibrate
from accel.cli.environment import env
from accel.cli.generate import generate
from accel.cli.inventory import list_everything
from accel.cli.profile import profile

__all__ = ["app", "main"]

app = typer.Typer(
    name="accel",
    add_completion=False,
    pretty_exceptions_enable=False,
    # --num_frames is --num-frames.
    context_settings={
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "help_option_names": ["--help", "-h"],
    },
)
app.command("generate")(generate)
app.command("bench")(bench)
app.command("compare")(compare)
app.command("report")(report)
app.command("profile")(profile)
app.command("calibrate")(calibrate)
app.command("list")(list_everything)
app.command("env")(env)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"accel {accel.__version__}")
        raise typer.Exit


@app.callback()
def _accel(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave."),
    ] = False,
) -> None:
    """Makes diffusers video and image pipelines faster without training."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 the run failed, 2 refused, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    return exits.run(app, given or ["--help"])
