"""From the cells of a benchmark to one line of figures for each setting."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from accel.measure.cells import Cell
from accel.measure.confidence import LEAST_BY_SIGNS
from accel.measure.prompt_accuracy import share_right
from accel.measure.timing import Timing
from accel.measure.trial import Setting
from accel.measure.verdict import LEAST_PSNR, SpeedUp, reds, speed_up

# Figures of one clip beside that of the baseline, and of one clip by itself.
LIKENESS = ("psnr_db", "ssim", "ms_ssim", "vmaf", "lpips", "motion_ratio", "flicker_ratio")
ALONE = ("motion", "flicker", "clip_score")
_ACCURACY = "prompt_accuracy"

Line = dict[str, Any]


def lines_of(
    settings: Sequence[Setting],
    baseline: Setting,
    cells: Callable[[Setting], Iterable[Cell]],
    *,
    least_psnr: float = LEAST_PSNR,
) -> list[Line]:
    """One line of plain data for each setting, the baseline's first.

    A line has "setting" (its name), "config", "steps", "evaluations", "runs", "errors", "seconds" (by part: median,
    p20, p80), "results_per_minute" (by batch), "steps_per_second", "tokens_per_second", "peak_bytes", "held_bytes",
    "block_calls" (as a share of the baseline's), "quality" (of each figure its mean, median, least and most over the
    clips), "missing" (why no clip has a figure, by its name), "same_bits" (clips with the baseline's bits),
    "prompt_accuracy", "speed_up" and "loop_speed_up" (None where nothing may be said), "unsaid" (why), "warnings",
    "library" of a rival with its version, "left_behind", and "fewer_steps" (the plain row with fewer steps that it has
    to beat, by "setting", and how many times as fast it is as that, "speed_up" with the same keys as above; else None).
    """
    found = {one.fingerprint: list(cells(one)) for one in (baseline, *settings)}
    ordered = [baseline, *(one for one in settings if one.fingerprint != baseline.fingerprint)]
    reference = [cell for cell in found[baseline.fingerprint] if cell.error is None]
    lines = [_line(one, one is baseline, found[one.fingerprint], reference, least_psnr) for one in ordered]
    runs = {one.name: [cell for cell in found[one.fingerprint] if cell.place.batch == 1] for one in ordered}
    for line in lines:
        line["fewer_steps"] = None
        other = _rival_of_fewer_steps(lines, line)
        if other is not None:
            said = _said(speed_up_of(runs[line["setting"]], runs[other["setting"]], "total"))
            line["fewer_steps"] = {"setting": other["setting"], "speed_up": said}
    return lines


def _line(setting: Setting, is_baseline: bool, cells: list[Cell], reference: list[Cell], least_psnr: float) -> Line:
    done = [cell for cell in cells if cell.error is None]
    single = [cell for cell in done if cell.place.batch == 1]
    judged = [cell.figures["quality"] for cell in single if "quality" in cell.figures]
    failed = [cell.error for cell in cells if cell.error is not None and cell.place.batch == 1]
    unsaid = _unsaid(single, failed, judged, reference, least_psnr)
    total, loop = (None, None)
    if not is_baseline and not unsaid:
        total, loop = speed_up_of(single, reference, "total"), speed_up_of(single, reference, "loop")
    line: Line = {
        "setting": setting.name,
        "baseline": is_baseline,
        "config": setting.to_dict(),
        "steps": _first(single, "steps"),
        "evaluations": _first(single, "evaluations"),
        "runs": len(single),
        "errors": sorted({cell.error for cell in cells if cell.error is not None}),
        "seconds": _seconds(single),
        "results_per_minute": _throughput(done),
        "steps_per_second": _rate(single, "steps"),
        "tokens_per_second": _median(cell.figures["tokens_per_second"] for cell in single),
        "peak_bytes": max((cell.figures["peak_bytes"] or 0 for cell in single), default=0) or None,
        "held_bytes": max((cell.figures["held_bytes"] for cell in single), default=0),
        "block_calls": _block_calls(single, reference),
        "quality": {name: spread for name in (*LIKENESS, *ALONE) if (spread := _spread(judged, name)) is not None},
        "missing": _missing(judged, (*ALONE, _ACCURACY) if is_baseline else (*LIKENESS, *ALONE, _ACCURACY)),
        "same_bits": sum(one["same_bits"] for one in judged),
        _ACCURACY: _accuracy(judged),
        "speed_up": _said(total),
        "loop_speed_up": _said(loop),
        "unsaid": [] if is_baseline else unsaid,
        "library": _first(single, "library"),
        "left_behind": sorted({name for cell in single for name in cell.figures["left_behind"]}),
    }
    line["warnings"] = [] if is_baseline else _warnings(setting, single, judged, total)
    return line


def _unsaid(
    cells: list[Cell], failed: list[str], judged: list[dict[str, Any]], reference: list[Cell], least_psnr: float
) -> list[str]:
    """Why no speed-up may be said of these runs, beside which others ended with an error."""
    found = []
    if not cells:
        found.append("no run of it is done")
    elif failed:
        found.append(f"{len(failed)} of {len(cells) + len(failed)} runs failed: {failed[0]}")
    if not reference:
        found.append("no run of the baseline is done")
    if any(cell.figures["warmup_steps"] < 1 for cell in (*cells, *reference)):
        found.append("the runs had no warm-up")
    if cells and len(judged) < len(cells):
        found.append("the results were not compared with the baseline's")
    if any(cell.figures["quality"]["repeats"] is False for cell in reference if "quality" in cell.figures):
        found.append("the baseline itself gave other bits the second time")
    return found + reds(judged, least_psnr=least_psnr)


def speed_up_of(cells: Iterable[Cell], reference: Iterable[Cell], part: str) -> SpeedUp | None:
    """How many times as fast runs are as others in a part of their seconds; None where they share no place that both
    finished."""
    base = {cell.place: cell.figures["seconds"][part] for cell in reference if cell.error is None}
    pairs = [(base.get(cell.place), cell.figures["seconds"][part]) for cell in cells if cell.error is None]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return speed_up([a for a, _ in known], [b for _, b in known]) if known else None


def _said(found: SpeedUp | None) -> dict[str, Any] | None:
    return None if found is None else {**asdict(found), "measurable": found.measurable, "text": str(found)}


def _warnings(setting: Setting, cells: list[Cell], judged: list[dict[str, Any]], total: SpeedUp | None) -> list[str]:
    found: list[str] = []
    for cell in cells:
        for run in (cell.figures["summary"] or {"runs": []})["runs"]:
            found += [note for note in run["notes"] if "did nothing" in note]
            found += [f"{entry['method']} fell back: {entry['reason']}" for entry in run["fallbacks"]]
    if any(cell.figures.get("given_back") is False for cell in cells):
        found.append("the plain pipeline does not repeat its own bits: whether this left it as it was is not known")
    if not setting.plain and total is not None and total.measurable is False:
        same = bool(judged) and all(one["same_bits"] for one in judged)
        found.append("it made no measurable difference in speed" + (", and gave the same bits" if same else ""))
        if total.pairs < LEAST_BY_SIGNS:
            more = f"{LEAST_BY_SIGNS} or more tell smaller ones"
            found.append(f"{total.pairs} pairs tell large differences alone; {more}")
    return list(dict.fromkeys(found))


def _accuracy(judged: list[dict[str, Any]]) -> dict[str, float] | None:
    scores = [one["score"] for one in judged if one["score"]]
    return share_right(scores) if scores else None


def _seconds(cells: list[Cell]) -> dict[str, dict[str, float]]:
    parts = dict.fromkeys(part for cell in cells for part in cell.figures["seconds"])
    found = {}
    for part in parts:
        values = [value for cell in cells if (value := cell.figures["seconds"][part]) is not None]
        if values:
            timing = Timing(tuple(values))
            found[part] = {"median": timing.median, "p20": timing.p20, "p80": timing.p80}
    return found


def _throughput(cells: list[Cell]) -> dict[str, float]:
    """Results a minute by the number of results in one call."""
    found: dict[int, list[float]] = {}
    for cell in cells:
        found.setdefault(cell.place.batch, []).append(cell.figures["seconds"]["total"])
    return {str(batch): 60 * batch / statistics.median(seconds) for batch, seconds in sorted(found.items())}


def _rate(cells: list[Cell], what: str) -> float | None:
    rates = [
        cell.figures[what] / cell.figures["seconds"]["loop"]
        for cell in cells
        if cell.figures[what] and cell.figures["seconds"]["loop"]
    ]
    return _median(rates)


def _block_calls(cells: list[Cell], reference: list[Cell]) -> float | None:
    base, own = (_mean(cell.figures["block_calls"] for cell in one) for one in (reference, cells))
    return own / base if own is not None and base else None


def _spread(judged: list[dict[str, Any]], name: str) -> dict[str, float] | None:
    values = [one[name] for one in judged if one.get(name) is not None]
    if not values:
        return None
    return {
        "mean": statistics.mean(values),
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
    }


def _missing(judged: list[dict[str, Any]], names: Iterable[str]) -> dict[str, str]:
    """Why a figure was measured in no clip, where a reason is known."""
    reasons: dict[str, str] = {}
    for one in judged:
        reasons = {**one.get("reasons", {}), **reasons}
    return {name: reasons[name] for name in names if name in reasons and all(one.get(name) is None for one in judged)}


def _first(cells: list[Cell], what: str) -> Any:
    return cells[0].figures.get(what) if cells else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _rival_of_fewer_steps(lines: Sequence[Line], line: Line) -> Line | None:
    """The plain row with fewer steps that a line has to beat.

    One that takes no longer and is better, if there is one; else the fastest of those that take at least as long.
    """
    own, decibels = line["seconds"].get("total"), mean_psnr(line)
    if own is None or _plain(line):
        return None
    rows = [one for one in lines if _plain(one) and one["config"]["steps"] is not None and one["seconds"]]
    faster = [one for one in rows if _median_total(one) <= own["median"]]
    beats = [one for one in faster if decibels is not None and (mean_psnr(one) or 0.0) >= decibels]
    if beats:
        return max(beats, key=lambda one: mean_psnr(one) or 0.0)
    slower = [one for one in rows if _median_total(one) >= own["median"]]
    return min(slower, key=_median_total, default=None)


def mean_psnr(line: Line) -> float | None:
    """In dB over the clips that differ from the baseline's; None where there is none."""
    found = line["quality"].get("psnr_db")
    return None if found is None else found["mean"]


def _median_total(line: Line) -> float:
    return line["seconds"]["total"]["median"]


def _plain(line: Line) -> bool:
    return line["config"]["config"] is None and line["config"]["rival"] is None
