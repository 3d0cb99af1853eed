"""`accel report`: from the results of a benchmark to its page."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from accel.cli.bench import show
from accel.cli.bench.pictures import clips, film, sheet
from accel.cli.bench.results import Results
from accel.cli.durations import count
from accel.cli.printing import Format, emit, say
from accel.measure.trial import Setting
from accel.reporting import front
from accel.reporting.bounded_film import MOST_BYTES, bounded
from accel.reporting.files import Writer, bytes_writer, check_free, text_writer, write_together
from accel.reporting.heat import heats
from accel.reporting.heat_values import unmeasured, values_of
from accel.reporting.page import Page, Section, render
from accel.reporting.video import mp4

# What a figure must be read with, of all that the identity holds.
_MACHINE = ("device", "cores", "threads", "python", "torch", "diffusers", "transformers", "triton", "commit")


def carry_out(folder: Path, target: Path, *, overwrite: bool, form: Format) -> None:
    """Writes the page, and the plot beside it as a picture."""
    results = Results.read(folder)
    plot_path = target.with_suffix(".png")
    lines = results.lines()
    found = front.points(lines)
    files: dict[Path, Writer] = {}
    if found:
        files[plot_path] = bytes_writer(front.draw(found, "png"))
    check_free([target, *files], overwrite=overwrite)
    headings, rows = show.cells(lines)
    place, films = clips(results, lines) if results.keeps_clips else (None, [])
    film_path, shown_film, lost = target.with_suffix(".mp4"), None, ""
    if films and len(films[0][1]) > 1:
        pixels, pace = film(results, films)
        whole = mp4(pixels, pace)
        shown_film, lost = bounded(pixels, pace, whole, MOST_BYTES)
        if lost:
            files[film_path] = bytes_writer(whole)
            check_free([film_path], overwrite=overwrite)
    page = Page(
        title=f"{_model(results)}: speed and quality",
        identity=_identity(results),
        headings=headings,
        rows=rows,
        remarks=show.remarks(lines),
        plot_svg=front.draw(found, "svg") if found else None,
        sheet_png=_png(sheet(films)) if films else None,
        film_mp4=shown_film,
        film_lost=lost,
        film_file=film_path.name,
        shown="" if place is None else f'"{place.prompt}", seed {place.seed}',
        parts=show.parts(lines),
        sections=[_section(results, one) for one in results.settings],
    )
    files[target] = text_writer(render(page))
    write_together(files, overwrite=overwrite)
    if form is Format.JSON:
        plot = os.path.abspath(plot_path) if found else None
        beside = os.path.abspath(film_path) if lost else None
        paths = {"page": os.path.abspath(target), "plot": plot, "film": beside}
        emit({"schema": 1, "kind": "accel report", "paths": paths})
        return
    say(f"{target}: the page, {target.stat().st_size / 1e6:.1f} MB, which needs no other file", form)
    if lost:
        say(f"{film_path}: the film, {len(whole) / 1e6:.1f} MB; the page shows {lost}", form)
    if found:
        say(f"{plot_path}: quality against speed", form)


def _model(results: Results) -> str:
    size = results.identity["size"]
    return f"{results.identity['model']}{f' ({size})' if size else ''}"


def _identity(results: Results) -> list[tuple[str, str]]:
    identity, plan = results.identity, results.plan
    machine = identity["machine"]
    changes = identity.get("uncommitted_changes")
    modified = f" with changes {changes or 'outside of Accel itself'}" if machine["modified"] or changes else ""
    told = {name: machine[name] for name in _MACHINE if machine[name] is not None}
    if "commit" in told:
        told["commit"] = f"{told['commit'][:12]}{modified}"
    repeats, warmup = plan["repeats"], plan["warmup_steps"]
    return [
        ("command", plan["command"]),
        ("pipeline", f"{identity['pipeline']}, {identity['dtype']}, weights {identity['weights']}"),
        ("baseline's backend", _backend(identity)),
        ("call", _words(identity["call"])),
        ("machine", _words(told)),
        ("accel", identity["accel"]),
        (
            "runs",
            f"{count(len(plan['prompts']), 'prompt')}, {count(len(plan['seeds']), 'seed')}, "
            f"{count(repeats, 'round')}, settings in turn, {count(warmup, 'step')} of each to warm up, "
            f"compared with {plan['baseline']}",
        ),
    ]


def _backend(identity: dict[str, Any]) -> str:
    # Older results do not tell.
    known = identity.get("baseline_backend")
    if known is None:
        return "not recorded"
    return f"attention: {known['attention']}, {'compiled' if known['compiled'] else 'not compiled'}"


def _section(results: Results, setting: Setting) -> Section:
    """The setting as it held in its first run, and what that run's methods did."""
    cells = [cell for place in results.places if (cell := results.store.find(setting, place)) is not None]
    done = [cell.figures["summary"] for cell in cells if cell.error is None and cell.figures["summary"] is not None]
    errors = [cell.error for cell in cells if cell.error is not None]
    if not done:
        if setting.rival is not None:
            errors.insert(0, f"the rival {setting.rival} with {_words(dict(setting.rival_settings)) or 'its defaults'}")
        notes = list(dict.fromkeys(errors))
        if setting.config.methods:
            return Section(setting.name, [], notes=notes, without="No run with its methods is finished.")
        return Section(setting.name, [], notes=notes)
    summary = done[0]
    settings = [
        (method, name, str(value)) for method, values in summary["settings"].items() for name, value in values.items()
    ]
    run = summary["runs"][-1] if summary["runs"] else {"notes": [], "fallbacks": []}
    notes = [
        *run["notes"],
        *(f"{one['method']} fell back {one['times']} times: {one['reason']}" for one in run["fallbacks"]),
    ]
    measured = results.store.heat(setting)
    return Section(
        setting.name, settings, heats(summary), notes, values_of(summary, measured), unmeasured(summary, measured)
    )


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png", optimize=True)
    return stream.getvalue()
