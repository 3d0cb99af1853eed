"""`accel compare`: the table, the sheet and the film."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from accel.cli.bench import show
from accel.cli.bench.pictures import clips, film, sheet
from accel.cli.bench.results import Results
from accel.cli.printing import Format, emit, say
from accel.errors import AccelError
from accel.reporting.files import Writer, bytes_writer, check_free, write_together
from accel.reporting.video import mp4

_SHEET = "compare.png"


@dataclass(frozen=True)
class Shown:
    """Which of the results are shown, and where that is written."""

    settings: tuple[str, ...]
    baseline: str | None
    prompt: str | None
    seed: int | None
    output: Path | None
    overwrite: bool
    fps: float | None


def check_targets(folder: Path, output: Path | None, *, video: bool, overwrite: bool) -> tuple[Path, Path | None]:
    """The sheet and, of a video, the film that are written for results in a folder; refused where one is there."""
    sheet_path = output or folder / _SHEET
    film_path = sheet_path.with_suffix(".mp4") if video else None
    check_free([path for path in (sheet_path, film_path) if path is not None], overwrite=overwrite)
    return sheet_path, film_path


def carry_out(results: Results, shown: Shown, form: Format) -> None:
    """Prints the table, and writes the sheet and, for a video, the film."""
    results = _chosen(results, shown)
    lines = results.lines()
    place, films = clips(results, lines, shown.prompt, shown.seed)
    sheet_path, film_path = check_targets(
        results.store.folder, shown.output, video=len(films[0][1]) > 1, overwrite=shown.overwrite
    )
    picture = sheet(films)
    files: dict[Path, Writer] = {sheet_path: lambda path: picture.save(path)}
    if film_path is not None:
        files[film_path] = bytes_writer(mp4(*film(results, films, shown.fps)))
    write_together(files, overwrite=shown.overwrite)
    if form is Format.JSON:
        paths = {"sheet": os.path.abspath(sheet_path), "film": film_path and os.path.abspath(film_path)}
        shown_of = {"prompt": place.prompt, "seed": place.seed}
        emit({"schema": 1, "kind": "accel compare", "paths": paths, **shown_of, "lines": lines})
        return
    for line in (*show.table(lines), *show.remarks(lines)):
        say(line, form)
    say(f'{sheet_path}: "{place.prompt}", seed {place.seed}, frame by frame, with what differs', form)
    if film_path is not None:
        say(f"{film_path}: the same as a film", form)


def _chosen(results: Results, shown: Shown) -> Results:
    """The results of the settings that are asked for, and of the baseline."""
    by_name = {one.name: one for one in results.settings}
    for name in (*shown.settings, *([shown.baseline] if shown.baseline is not None else [])):
        if name not in by_name:
            raise AccelError(f"{results.store.folder} holds no setting {name!r}; it holds {'; '.join(by_name)}")
    baseline = results.baseline if shown.baseline is None else by_name[shown.baseline]
    if baseline is not results.baseline:
        raise AccelError(
            f"the quality in {results.store.folder} is that beside {results.baseline.name!r}; measure with "
            f"accel bench --baseline {baseline.name!r} to compare with that"
        )
    names = shown.settings or tuple(by_name)
    settings = tuple(one for one in results.settings if one.name in names or one is baseline)
    return replace(results, settings=settings)
