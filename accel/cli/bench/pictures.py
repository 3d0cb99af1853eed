"""The clips that a benchmark has kept, beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from accel.cli.bench.results import Results
from accel.errors import AccelError
from accel.measure.cells import Place
from accel.measure.lines import Line
from accel.measure.trial import Setting
from accel.measure.verdict import fault
from accel.reporting.side_by_side import Film, film_of_films, sheet_with_differences

# Of a video whose plan does not tell; chosen by us.
_FPS = 16


def sheet(films: Sequence[Film]) -> Image.Image:
    """The same frames of each, and what differs from the first."""
    return sheet_with_differences(films)


def film(results: Results, films: Sequence[Film], fps: float | None = None) -> tuple[np.ndarray, float]:
    """All of them side by side: (T, H, W, 3), uint8, and frames a second, the model's own if none are given."""
    return film_of_films(films), fps or results.plan.get("frames_per_second") or _FPS


def clips(
    results: Results, lines: Sequence[Line], prompt: str | None = None, seed: int | None = None
) -> tuple[Place, list[Film]]:
    """The clips of one prompt and seed, the first that are kept, of the baseline first, each with what is said of it.

    Raises:
        AccelError: none are kept, or none of that prompt and seed.
    """
    kept = [place for place in results.places if results.store.clip(results.baseline, place) is not None]
    wanted = [place for place in kept if prompt in (None, place.prompt) and seed in (None, place.seed)]
    if not wanted:
        if not kept:
            raise AccelError(f"{results.store.folder} keeps no results to look at; measure with --clips first or all")
        known = "; ".join(dict.fromkeys(f'"{place.prompt}", seed {place.seed}' for place in kept))
        raise AccelError(f"{results.store.folder} keeps no results of that prompt and seed; it keeps {known}")
    place = wanted[0]
    said = {line["setting"]: line for line in lines}
    films = []
    ordered = [results.baseline, *(one for one in results.settings if one is not results.baseline)]
    for setting in ordered:
        pixels = results.store.clip(setting, place)
        if pixels is not None:
            films.append((_label(results, setting, place, said[setting.name]), pixels))
    return place, films


def _label(results: Results, setting: Setting, place: Place, line: Line) -> str:
    cell = results.store.find(setting, place)
    figures: dict[str, Any] = cell.figures if cell is not None else {}
    parts = [setting.name]
    if figures:
        parts.append(f"{figures['seconds']['total']:.1f} s")
        decibels = figures["quality"]["psnr_db"]
        if decibels is not None:
            parts.append(f"{decibels:.1f} dB")
        elif figures["quality"]["same_bits"]:
            parts.append("same bits")
        wrong = fault(figures["quality"], least_psnr=results.least_psnr)
        # What is wrong may be something else than this clip, which the remarks tell.
        parts += [wrong] if wrong is not None else ["no speed-up is said"] if line["unsaid"] else []
    return ", ".join(parts)
