"""The command `accel`.

This package's modules load torch and diffusers inside the commands only, so that `--help` and refusals of the command
line are quick.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

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


class _Commands(TyperGroup):
    """The commands; the beginning of a name is taken for a hint at it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the command; refuses an unknown one with the nearest that there is."""
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            meant = [name for name in names if name.startswith(args[0])] or get_close_matches(args[0], names)
            hint = f"did you mean '{meant[0]}'?" if meant else f"there are {', '.join(names)}"
            ctx.fail(f"no such command '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="accel",
    cls=_Commands,
    epilog='To begin with: accel generate --prompt "a red circle moving left" -o circle.mp4 (no download). Exit codes: '
    "0 done, 1 the run failed, 2 refused, 130 interrupted.",
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
