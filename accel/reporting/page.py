"""One HTML file that shows a benchmark anywhere, without a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel.errors import AccelError
from accel.reporting.heat import Heat

_TEMPLATE = Path(__file__).with_name("page.html.j2")
# Neighbouring words get colours that differ in light too, so that they are told apart without seeing colour.
_COLOURS = ("#0b6e4f", "#e8b84b", "#7a9cc6", "#c8553d", "#5d4a66", "#b9c7b0")


@dataclass(frozen=True)
class Section:
    """One setting: its name, its effective settings as (method, setting, value), and what its methods did where."""

    name: str
    settings: Sequence[tuple[str, str, str]]
    heats: Sequence[Heat] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """All that a page shows; files are bytes. `film_lost` says what the film has lost of that in the file beside it."""

    title: str
    identity: Sequence[tuple[str, str]]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str]
    plot_svg: bytes | None
    sheet_png: bytes | None
    film_mp4: bytes | None
    shown: str
    sections: Sequence[Section] = field(default_factory=list)
    film_lost: str = ""
    film_file: str = ""


def render(page: Page) -> str:
    """The page as text.

    Raises:
        AccelError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise AccelError('a report needs jinja2: pip install "dit-accel[bench]"') from error
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    grids = {section.name: [_grid(heat) for heat in section.heats] for section in page.sections}
    plot = None if page.plot_svg is None else _inline(page.plot_svg)
    return template.render(page=page, grids=grids, plot=plot)


def _grid(heat: Heat) -> dict[str, Any]:
    """A heat map for the template: cells with a colour and what is said of them."""
    words = heat.words
    colours = {word: _COLOURS[index % len(_COLOURS)] for index, word in enumerate(words)}
    levers = {word: _lever(heat, word) for word in words}
    cells = [
        {
            "x": step,
            "y": block,
            "fill": colours[word],
            "said": f"block {block}, step {step + 1}: {word}. {levers[word]}",
        }
        for block, row in enumerate(heat.cells)
        for step, word in enumerate(row)
        if word
    ]
    total = len(cells)
    shares = {word: sum(row.count(word) for row in heat.cells) / total for word in words}
    return {
        "title": f"{heat.method}, {heat.denoiser}, {heat.branch}",
        "rows": len(heat.cells),
        "columns": max((len(row) for row in heat.cells), default=0),
        "cells": cells,
        "legend": [(word, colours[word], f"{shares[word]:.0%}", levers[word]) for word in words],
    }


def _lever(heat: Heat, word: str) -> str:
    found = [heat.levers[part] for part in word.split(" and ") if heat.levers.get(part)]
    return f"What changes it: {'; '.join(dict.fromkeys(found))}" if found else "No setting changes it."


def _inline(svg: bytes) -> str:
    """The picture itself, without the lines before it that only a file of its own has."""
    text = svg.decode()
    return text[text.index("<svg") :]
