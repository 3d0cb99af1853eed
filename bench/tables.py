"""From the figures of single clips to the lines of a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from accel.measure.prompt_accuracy import share_right
from accel.measure.timing import Timing, ratio
from bench.clips import Row

# Clips that are equal bit for bit have an infinite PSNR, which no mean can hold.
MOST_DB = 100.0

Clip = dict[str, Any]
Line = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure of a method's report that its benchmark shows: its key there and here, heading and format."""

    reported: str
    key: str
    heading: str
    form: str

    def of(self, clip: Clip) -> float | None:
        """The figure of one clip, or None where no method of the row reports it."""
        found = [report[self.reported] for report in clip["methods"].values() if self.reported in report]
        return found[0] if found else None


def lines_of(rows: dict[str, Row], clips: dict[str, list[Clip]], figure: Figure | None) -> list[Line]:
    """One line of figures for each row; likeness, motion, block calls and speed are against the first row's."""
    reference = clips[next(iter(rows))]
    return [_line(name, row, clips[name], reference, figure) for name, row in rows.items()]


def _line(name: str, row: Row, clips: list[Clip], reference: list[Clip], figure: Figure | None) -> Line:
    whole, loop = _timing(clips, "seconds"), _timing(clips, "loop_seconds")
    decibels = [clip["psnr_db"] for clip in clips]
    line: Line = {
        "setting": name,
        "config": row.describe(),
        "steps": row.steps,
        "seconds": round(whole.median, 2),
        "seconds_p20": round(whole.p20, 2),
        "seconds_p80": round(whole.p80, 2),
        "loop_seconds": round(loop.median, 2),
        "speed_up": round(ratio(_timing(reference, "seconds"), whole), 2),
        "loop_speed_up": round(ratio(_timing(reference, "loop_seconds"), loop), 2),
        "block_calls": round(_mean(clips, "block_calls") / _mean(reference, "block_calls"), 4),
        "psnr_db": [None if one is None else round(min(one, MOST_DB), 2) for one in decibels],
        "ssim": [None if clip["ssim"] is None else round(clip["ssim"], 4) for clip in clips],
        "prompt_accuracy": {key: round(share, 3) for key, share in share_right([c["score"] for c in clips]).items()},
        "motion": round(_mean(clips, "motion") / _mean(reference, "motion"), 3),
        "held_mb": round(max(clip["held_bytes"] for clip in clips) / 1e6, 1),
        "left_behind": sorted({attribute for clip in clips for attribute in clip["left_behind"]}),
    }
    if figure is not None:
        shown = [value for clip in clips if (value := figure.of(clip)) is not None]
        line[figure.key] = round(statistics.mean(shown), 3) if shown else None
    return line


def _timing(clips: list[Clip], key: str) -> Timing:
    return Timing(tuple(clip[key] for clip in clips))


def _mean(clips: list[Clip], key: str) -> float:
    return statistics.mean(clip[key] for clip in clips)


def markdown(
    title: str, settings: dict[str, Any], groups: dict[int, list[Line]], figure: Figure | None, notes: list[str]
) -> str:
    """The tables for people, one for each number of steps."""
    shown = {key: value for key, value in settings.items() if key not in ("command", "machine", "prompts")}
    text = [
        f"# {title}",
        "",
        f"Printed by `{settings['command']}`.",
        "",
        ", ".join(f"{key}: {value}" for key, value in shown.items()),
        "",
        ", ".join(f"{key}: {value}" for key, value in settings["machine"].items() if value is not None),
        "",
        "PSNR and SSIM are against the plain clips of the first row: mean, median (least) over the prompts; "
        f"a clip that is equal bit for bit counts as {MOST_DB:g} dB.",
        "Block calls are those that were computed, counted from outside, as a share of the first row's.",
        "Speed-up is that of the denoising loop; seconds are medians of the loop and of the whole call.",
        "Prompt accuracy is the share of clips that show everything their prompt names.",
        "Motion is the mean difference between neighbouring frames, relative to the first row's clips.",
        *notes,
    ]
    text += _left_behind(line for lines in groups.values() for line in lines)
    for steps, lines in groups.items():
        text += ["", *([f"## {steps} steps", ""] if len(groups) > 1 else []), *_table(lines, figure)]
    return "\n".join(text) + "\n"


def _left_behind(lines: Iterable[Line]) -> list[str]:
    left: dict[str, set[str]] = {}
    for line in lines:
        for entry in line["config"]:
            if "rival" in entry:
                left.setdefault(entry["rival"], set()).update(f"`{name}`" for name in line["left_behind"])
    if not left:
        return []
    each = "; ".join(f"{rival}: {', '.join(sorted(names)) or 'nothing'}" for rival, names in left.items())
    return ["", f"Attributes that a rival's own undo left changed on the pipeline, and the benchmark put back: {each}."]


def _table(lines: list[Line], figure: Figure | None) -> list[str]:
    headings = ["setting", "block calls", "speed-up", "seconds (loop)", "seconds", "PSNR dB", "SSIM"]
    headings += ["prompt accuracy", "motion", *([] if figure is None else [figure.heading]), "held MB"]
    text = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for line in lines:
        cells = [
            line["setting"],
            f"{line['block_calls']:.1%}",
            f"{line['loop_speed_up']:.2f}×",
            f"{line['loop_seconds']:.1f}",
            f"{line['seconds']:.1f}",
            _spread(line["psnr_db"], "{:.1f}"),
            _spread(line["ssim"], "{:.3f}"),
            f"{line['prompt_accuracy']['all']:.2f}",
            f"{line['motion']:.2f}",
        ]
        if figure is not None:
            cells.append("–" if line[figure.key] is None else figure.form.format(line[figure.key]))
        text.append(f"| {' | '.join([*cells, str(line['held_mb'])])} |")
    return text


def _spread(values: list[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, median, least = (form.format(f(known)) for f in (statistics.mean, statistics.median, min))
    return f"{mean}, {median} ({least})"
