"""One HTML file that shows a benchmark anywhere, without a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accel.errors import AccelError
from accel.reporting.grids import Grid, of_values, of_words
from accel.reporting.heat import Heat
from accel.reporting.heat_values import Values

_TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class Section:
    """One setting: its name, its effective settings as (method, setting, value), and what its methods did where.

    `values` are the measures of the same run, `unmeasured` says which of them are missing and why. `without` stands
    where there are no settings.
    """

    name: str
    settings: Sequence[tuple[str, str, str]]
    heats: Sequence[Heat] = ()
    notes: Sequence[str] = ()
    values: Sequence[Values] = ()
    unmeasured: Sequence[str] = ()
    without: str = "No method of Accel was on."


@dataclass(frozen=True)
class Page:
    """All that a page shows; files are bytes.

    `film_lost` says what the film has lost of that in the file beside it; `parts` has the headings and rows of a second
    table.
    """

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
    parts: tuple[Sequence[str], Sequence[Sequence[str]]] = ((), ())
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
    grids = {section.name: _by_view(section) for section in page.sections}
    plot = None if page.plot_svg is None else _inline(page.plot_svg)
    return template.render(page=page, grids=grids, plot=plot)


def _by_view(section: Section) -> dict[str, list[Grid]]:
    """The maps of a section: what each method did, and the measures."""
    found: dict[str, list[Grid]] = {}
    for grid in (*map(of_words, section.heats), *map(of_values, section.values)):
        found.setdefault(grid.view, []).append(grid)
    return found


def _inline(svg: bytes) -> str:
    """The picture itself, without the lines before it that only a file of its own has."""
    text = svg.decode()
    return text[text.index("<svg") :]
