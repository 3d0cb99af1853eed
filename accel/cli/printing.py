"""What a command prints: lines for a person, or one JSON object for a program."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from accel.cli.options import WHERE, option

# Of the text of a last column, so many characters must fit beside the other columns; else it goes on below them.
_LEAST = 32


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


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None where it is none, since other programs read a line for each row."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def folded(line: str, hang: int, width: int | None) -> list[str]:
    """A line in as many lines as `width` asks for, the further ones indented by `hang`; whole without a width."""
    if width is None or len(line) <= width:
        return [line]
    found = textwrap.wrap(
        line, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False, tabsize=1
    )
    return [each.rstrip() for each in found]


def columns(rows: Sequence[tuple[str, ...]], indent: str = "  ", width: int | None = None) -> list[str]:
    """Rows as lines, with every column but the last padded to its widest cell; with a width the last one is folded."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
    start = len(indent) + sum(widths) + 2 * len(widths)
    narrow = width is not None and width - start < _LEAST
    found = []
    for row in rows:
        *first, last = (cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=True))
        if narrow and first:
            found += folded((indent + "  ".join(first)).rstrip(), len(indent) + 2, width)
            first, last = [], f"    {last}"
        line = (indent + "  ".join([*first, last])).rstrip()
        found += folded(line, len(indent) + 4 if narrow else start, width)
    return found
