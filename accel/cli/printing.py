"""What a command prints: lines for a person, or one JSON object for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from accel.cli.options import WHERE, option


class Format(StrEnum):
    """The two forms."""

    HUMAN = "human"
    JSON = "json"


FormatOption = Annotated[
    Format,
    option(WHERE, "human, or json: one object on stdout, all else on stderr.", "--format", metavar="NAME"),
]


def say(text: str, form: Format) -> None:
    """A line for a person: on stdout, unless that is kept for the JSON object."""
    typer.echo(text, err=form is Format.JSON)


def emit(data: dict[str, Any]) -> None:
    """The JSON object."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def columns(rows: Sequence[tuple[str, ...]], indent: str = "  ") -> list[str]:
    """Rows as lines, with every column but the last padded to its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
    return [
        (indent + "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]])).rstrip()
        for row in rows
    ]
