"""The prompts of a command that makes several runs with the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accel.cli.job.prompts import read, where
from accel.errors import AccelError


def several_prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """Those of `--prompt`, or the lines of the file of `--prompts`; none where neither is given.

    Raises:
        AccelError: both are given, or a line of the file has settings of its own.
    """
    if file is None:
        return list(given)
    if given:
        raise AccelError("--prompt and --prompts both say what to show; give one of the two")
    lines = read(file.expanduser())
    odd = next((line for line in lines if line.settings), None)
    if odd is not None:
        raise AccelError(
            f'{where(file, odd.number)}: "{next(iter(odd.settings))}" is a setting of one line, and all runs here have '
            "the same; leave it out"
        )
    return [line.prompt for line in lines]
