"""All methods, their combinations and all rivals on the built-in model at three levels of quality.

python -m bench.levels [--prompts 8] [--size standard] [--threads 1] [--rows tdc taylorseer] [--write]

Of each method a few settings are measured, and the table shows at each level the fastest whose mean PSNR is at least
that. Where Accel's best is the front and where not is computed and stands below, beside a plot of quality and speed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from accel.cli.bench import show
from accel.errors import AccelError, AccelWarning
from accel.measure.lines import Line, lines_of, speed_up_of
from accel.measure.verdict import SpeedUp
from accel.reporting import front
from bench.comparison import Benchmark, chosen
from bench.level_choice import LEVELS, at_level, bests, closing, fastest
from bench.level_settings import baseline, families
from bench.tables import heading

TITLE = "Speed at three levels of quality on the built-in model"
_TOLD = (
    "At each level stands, of the settings of each method that were measured, the fastest whose mean PSNR to the plain",
    "clips is at least that; the fastest of all is bold. Seconds and speed-up are those of the whole call, medians",
    "(20th to 80th percentile) and the ratio of medians, with half the distance between these percentiles of the",
    "ratios of single pairs behind ±. Quality is the mean over the prompts, in brackets the worst of them; motion is",
    "relative to the plain clips; prompt accuracy is the share of clips that show everything their prompt names.",
    "",
    "The formats of `mixed` are emulated on a CPU, FlexAttention and torchao's INT8 are not compiled: their seconds",
    "say nothing of a GPU.",
)


def main() -> None:
    bench = Benchmark.open("levels", __doc__, prompts=8)
    warnings.simplefilter("ignore", AccelWarning)  # that NVFP4 is emulated stands above the table
    if len(bench.steps) > 1:
        raise SystemExit("--steps: give one number")
    (steps,) = bench.steps
    try:
        # Before the hours of measuring, not after them.
        front.check_drawing()
    except AccelError as error:
        raise SystemExit(str(error)) from error
    groups = families(steps)
    settings = chosen([baseline(steps), *(one for each in groups.values() for one in each)], bench.options.rows)
    cells = bench.measured(settings)
    lines = lines_of(settings, settings[0], cells)
    by_name = {one.name: one for one in settings}
    names = {family: [one.name for one in each if one.name in by_name] for family, each in groups.items()}
    names = {family: each for family, each in names.items() if each}

    def against(slower: str, faster: str) -> SpeedUp:
        found = speed_up_of(cells(by_name[faster]), cells(by_name[slower]), "total")
        if found is None:
            raise RuntimeError(f"{slower!r} and {faster!r} have no runs of the same prompt and seed")
        return found

    last = closing(lines, against)
    data = {
        **bench.about,
        "lines": lines,
        "levels": {f"{level:g}": _names_of(lines, names, level) for level in LEVELS},
        "front": [point.name for point in front.front(front.points(lines))],
        "closing": last,
    }
    picture = plot(lines)
    where = bench.folder / "front.png"
    where.write_bytes(picture)
    bench.write(page(bench, lines, names, last), data, {"png": picture})
    print(f"{where}: quality against speed")


def page(bench: Benchmark, lines: Sequence[Line], names: Mapping[str, Sequence[str]], last: Sequence[str]) -> str:
    """The whole page for people, with the plot that lies beside it."""
    text = [*heading(TITLE, bench.about), *_TOLD]
    for level in LEVELS:
        text += ["", f"## At least {level:g} dB", "", *level_table(lines, names, level)]
    text += ["", "## The front", "", f"![quality against speed]({bench.stem}.png)", "", *(f"- {one}" for one in last)]
    headings, rows = show.cells(lines)
    text += ["", "## All settings", "", *_table([headings, *rows])]
    headings, rows = show.parts(lines)
    text += ["", "## Seconds by part", "", *_table([headings, *rows]), "", *(f"- {one}" for one in show.remarks(lines))]
    return "\n".join(text) + "\n"


def level_table(lines: Sequence[Line], names: Mapping[str, Sequence[str]], level: float) -> list[str]:
    """A row for the plain pipeline and for each method: its fastest setting at the level, or why there is none."""
    found = at_level(lines, names, level)
    shown = [lines[0], *(line for line, _ in found.values() if line is not None)]
    headings, cells = show.cells(shown)
    by_name = {row[0]: row for row in cells}
    best = fastest(shown, level)
    rows: list[Sequence[str]] = [("method", *headings), ("", *cells[0])]
    for family, (line, why) in found.items():
        if line is None:
            rows.append((family, why, *["–"] * (len(headings) - 1)))
        else:
            name, *rest = by_name[line["setting"]]
            rows.append((family, f"**{name}**" if line is best else name, *rest))
    return _table(rows)


def plot(lines: Sequence[Line]) -> bytes:
    """All settings; those of the front, and the best of Accel and of all others at each level, with their names."""
    found = front.points(lines)
    named = {line["setting"] for level in LEVELS for line in bests(lines, level) if line is not None}
    return front.draw(found, "png", {*named, *(point.name for point in front.front(found))})


def _names_of(lines: Sequence[Line], names: Mapping[str, Sequence[str]], level: float) -> dict[str, str | None]:
    found = at_level(lines, names, level)
    return {family: None if line is None else line["setting"] for family, (line, _) in found.items()}


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    text = [f"| {' | '.join(row)} |" for row in cells]
    return [text[0], "|" + "---|" * len(rows[0]), *text[1:]]


if __name__ == "__main__":
    main()
