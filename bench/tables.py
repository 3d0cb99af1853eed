"""From the finished runs of settings to the rows of a table, and to the page that shows it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accel.measure.cells import Cell
from accel.measure.lines import Line, lines_of
from accel.measure.trial import Setting

# Clips that are equal bit for bit have an infinite PSNR, which no mean can hold.
MOST_DB = 100.0
_NONE = "–"

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure of a method's report that its benchmark shows: its key there and here, heading and format."""

    reported: str
    key: str
    heading: str
    form: str

    def of(self, cell: Cell) -> float | None:
        """The figure of one run, or None where no method of the setting reports it."""
        summary = cell.figures["summary"]
        reports = {} if summary is None else summary["runs"][-1]["methods"]
        return next((report[self.reported] for report in reports.values() if self.reported in report), None)


def rows_of(settings: Sequence[Setting], cells: Callable[[Setting], list[Cell]], figure: Figure | None) -> list[Row]:
    """One row of rounded figures for each setting; likeness, motion, block calls and speed are against the first's.

    What may be said of the speed is as :func:`accel.measure.lines.lines_of` has it: None where nothing may. Seconds
    and shares are None where no run is done, and the lists, which have a value for each clip, are empty then.
    """
    lines = lines_of(settings, settings[0], cells)
    found = zip(settings, lines, strict=True)
    return [_row(one, line, [c for c in cells(one) if c.error is None], lines[0], figure) for one, line in found]


def _row(setting: Setting, line: Line, cells: list[Cell], reference: Line, figure: Figure | None) -> Row:
    judged = [cell.figures["quality"] for cell in cells]
    whole, loop = line["seconds"].get("total", {}), line["seconds"].get("loop", {})
    row: Row = {
        "setting": setting.name,
        "config": described(setting),
        "steps": setting.steps,
        "seconds": _rounded(whole.get("median"), 2),
        "seconds_p20": _rounded(whole.get("p20"), 2),
        "seconds_p80": _rounded(whole.get("p80"), 2),
        "loop_seconds": _rounded(loop.get("median"), 2),
        "speed_up": _ratio(line, "speed_up"),
        "loop_speed_up": _ratio(line, "loop_speed_up"),
        "loop_speed_up_text": line["loop_speed_up"]["text"] if line["loop_speed_up"] else None,
        "block_calls": _rounded(line["block_calls"], 4),
        "psnr_db": [_decibels(one) for one in judged],
        "ssim": [_rounded(one["ssim"], 4) for one in judged],
        "vmaf": [_rounded(one["vmaf"], 2) for one in judged],
        "prompt_accuracy": {key: round(share, 3) for key, share in (line["prompt_accuracy"] or {}).items()},
        "motion": _motion(line, reference),
        "held_mb": round(line["held_bytes"] / 1e6, 1),
        "library": line["library"],
        "left_behind": line["left_behind"],
        "errors": line["errors"],
        "unsaid": line["unsaid"],
        "warnings": line["warnings"],
    }
    if figure is not None:
        shown = [value for cell in cells if (value := figure.of(cell)) is not None]
        row[figure.key] = round(statistics.mean(shown), 3) if shown else None
    return row


def described(setting: Setting) -> list[dict[str, Any]]:
    """A setting as data: one entry for each method, none for the plain pipeline."""
    if setting.rival is not None:
        return [{"rival": setting.rival, **setting.rival_settings}]
    found = [{"method": method.method, **method.model_dump(mode="json")} for method in setting.config.methods]
    return [*found, {"prepared": setting.prepared.words}] if setting.prepared is not None else found


def _ratio(line: Line, key: str) -> float | None:
    if line["baseline"]:
        return 1.0
    return round(line[key]["ratio"], 2) if line[key] else None


def _decibels(judged: dict[str, Any]) -> float | None:
    return MOST_DB if judged["same_bits"] else _rounded(judged["psnr_db"], 2)


def _motion(line: Line, reference: Line) -> float | None:
    own, other = (one["quality"].get("motion", {}).get("mean") for one in (line, reference))
    return round(own / other, 3) if own is not None and other else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def markdown(
    title: str,
    about: Mapping[str, Any],
    groups: Mapping[int, Sequence[Row]],
    figure: Figure | None,
    notes: Sequence[str],
) -> str:
    """The tables for people, one for each number of steps."""
    text = [
        *heading(title, about),
        "PSNR, SSIM and VMAF are against the plain clips of the first row: mean, median (least) over the prompts; "
        f"a clip that is equal bit for bit counts as {MOST_DB:g} dB.",
        "Block calls are those that were computed, counted from outside, as a share of the first row's.",
        "Speed-up is that of the denoising loop; seconds are medians of the loop and of the whole call.",
        "Prompt accuracy is the share of clips that show everything their prompt names.",
        "Motion is the mean difference between neighbouring frames, relative to the first row's clips.",
        *notes,
    ]
    rows = [row for group in groups.values() for row in group]
    text += rivals(rows)
    for steps, group in groups.items():
        text += ["", *([f"## {steps} steps", ""] if len(groups) > 1 else []), *_table(group, figure)]
    said = [f"- {row['setting']}: {why}" for row in rows for why in (*_unsaid(row), *row["warnings"])]
    return "\n".join([*text, *(["", *said] if said else [])]) + "\n"


def heading(title: str, about: Mapping[str, Any]) -> list[str]:
    """What a page of results begins with: by which command, on which machine."""
    shown = {key: value for key, value in about.items() if key not in ("command", "machine", "prompts")}
    if "baseline_backend" in shown:
        known = shown["baseline_backend"]
        shown["baseline_backend"] = f"attention {known['attention']}, {'' if known['compiled'] else 'not '}compiled"
    return [
        f"# {title}",
        "",
        f"Printed by `{about['command']}`.",
        "",
        ", ".join(f"{key}: {value}" for key, value in shown.items()),
        "",
        ", ".join(f"{key}: {value}" for key, value in about["machine"].items() if value is not None),
        "",
    ]


def rivals(rows: Sequence[Row]) -> list[str]:
    """Which library each rival is of, and what its own undo left."""
    left: dict[str, set[str]] = {}
    for row in rows:
        for entry in row["config"]:
            if "rival" in entry and row["library"] is not None:
                of = f"{entry['rival']} of {row['library']}"
                left.setdefault(of, set()).update(f"`{name}`" for name in row["left_behind"])
    if not left:
        return []
    each = "; ".join(f"{rival}: {', '.join(sorted(names)) or 'nothing'}" for rival, names in left.items())
    return ["", f"Attributes that a rival's own undo left changed on the pipeline, and the benchmark put back: {each}."]


def _unsaid(row: Row) -> list[str]:
    return [f"no speed-up is said: {why}" for why in row["unsaid"]] if row["seconds"] is not None else []


def _table(rows: Sequence[Row], figure: Figure | None) -> list[str]:
    headings = ["setting", "block calls", "speed-up", "seconds (loop)", "seconds", "PSNR dB", "SSIM", "VMAF"]
    headings += ["prompt accuracy", "motion", *([] if figure is None else [figure.heading]), "held MB"]
    text = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for row in rows:
        cells = [
            row["setting"],
            shown(row["block_calls"], "{:.1%}"),
            speed_up(row),
            shown(row["loop_seconds"], "{:.1f}"),
            shown(row["seconds"], "{:.1f}"),
            _spread(row["psnr_db"], "{:.1f}"),
            _spread(row["ssim"], "{:.3f}"),
            _spread(row["vmaf"], "{:.1f}"),
            shown(row["prompt_accuracy"].get("all"), "{:.2f}"),
            shown(row["motion"], "{:.2f}"),
        ]
        if figure is not None:
            cells.append(shown(row[figure.key], figure.form))
        text.append(f"| {' | '.join([*cells, str(row['held_mb'])])} |")
    return text


def speed_up(row: Row) -> str:
    """That of the loop with its spread, why there is none, or a dash."""
    if row["errors"]:
        return f"failed: {'; '.join(row['errors'])}".replace("|", "\\|")
    return row["loop_speed_up_text"] or ("1.00×" if row["loop_speed_up"] == 1.0 else _NONE)


def shown(value: float | None, form: str) -> str:
    """A figure, or a dash where there is none."""
    return _NONE if value is None else form.format(value)


def _spread(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return _NONE
    mean, median, least = (form.format(f(known)) for f in (statistics.mean, statistics.median, min))
    return f"{mean}, {median} ({least})"
