"""The table of a benchmark, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accel.cli.printing import columns
from accel.measure.lines import Line, mean_psnr

_NONE = "–"
# Characters of an exception's text in a row, so that the other columns stay in sight; the remarks have all of it.
_MOST_OF_AN_ERROR = 60


Cells = tuple[tuple[str, ...], list[tuple[str, ...]]]


def cells(lines: Sequence[Line]) -> Cells:
    """The headings and a row for each setting; columns in which nothing stands are left out."""
    return _cells(lines, _COLUMNS)


def parts(lines: Sequence[Line]) -> Cells:
    """The same of a second table: the seconds by part, rates, and the figures of quality that the first has not."""
    return _cells(lines, _PARTS)


def _cells(lines: Sequence[Line], wanted: Sequence[tuple[str, Any]]) -> Cells:
    shown = [
        (heading, cell) for heading, cell in wanted if heading in _ALWAYS or any(cell(line) != _NONE for line in lines)
    ]
    headings = ("setting", *(heading for heading, _ in shown))
    return headings, [(line["setting"], *(cell(line) for _, cell in shown)) for line in lines]


def table(lines: Sequence[Line]) -> list[str]:
    """Both for a terminal."""
    headings, rows = cells(lines)
    found = columns([headings, *rows], indent="")
    headings, rows = parts(lines)
    return found if len(headings) == 1 else [*found, "", *columns([headings, *rows], indent=""), ""]


def remarks(lines: Sequence[Line]) -> list[str]:
    """Why figures are missing, what is wrong with a setting or stands against it, whether fewer steps do as well."""
    found = _missing(lines)
    by_name = {line["setting"]: line for line in lines}
    for line in lines:
        name = line["setting"]
        found += [f"{name}: failed: {error}" for error in line["errors"]]
        found += [f"{name}: no speed-up is said: {reason}" for reason in line["unsaid"] if line["runs"]]
        found += [f"{name}: warning: {text}" for text in line["warnings"]]
        if line["library"] is not None:
            left = f"; its own undo left {', '.join(line['left_behind'])}, put back" if line["left_behind"] else ""
            found.append(f"{name}: of {line['library']}{left}")
        beside = line["fewer_steps"]
        if beside is not None and not line["unsaid"]:
            found += _against_fewer_steps(line, by_name[beside["setting"]], beside["speed_up"])
    return found


def _missing(lines: Sequence[Line]) -> list[str]:
    """One remark for each reason that figures are missing for, and of which settings where it is not of all."""
    figures: dict[str, list[str]] = {}
    settings: dict[str, dict[str, None]] = {}
    for line in lines:
        for name, reason in line["missing"].items():
            if name in _WEIGHTS and reason.startswith("no weights were given"):
                reason = f"no weights were given; accel bench takes their folder with {_WEIGHTS[name]}"
            title = _TITLES[name]
            if title not in figures.setdefault(reason, []):
                figures[reason].append(title)
            settings.setdefault(reason, {})[line["setting"]] = None
    judged = [line["setting"] for line in lines if line["runs"] and not line["baseline"]]
    found = []
    for reason, titles in figures.items():
        some = "" if set(judged) <= settings[reason].keys() else f" of {', '.join(settings[reason])}"
        found.append(f"not measured{some}: {', '.join(titles)}: {reason}")
    return found


def _against_fewer_steps(line: Line, other: Line, speed_up: dict[str, Any] | None) -> list[str]:
    own, its = mean_psnr(line), mean_psnr(other)
    if own is None or its is None or speed_up is None:
        return []
    name, rival, decibels = line["setting"], other["setting"], f"({own:.1f} against {its:.1f} dB)"
    level = speed_up["measurable"] is False
    if own > its:
        time = "takes about as long" if level else "takes at least as long"
        return [f"{name}: better than {rival}, which {time} {decibels}"]
    if level:
        return [f"{name}: {rival} takes about as long, and is as good or better {decibels}"]
    if speed_up["ratio"] > 1:
        return [f"{name}: takes less time than {rival}, and is no better {decibels}"]
    return [f"{name}: {rival} takes no longer and is as good or better {decibels}"]


def _speed(line: Line) -> str:
    if line["baseline"]:
        return "1.00×"
    if line["errors"] and not line["runs"]:
        text = f"failed: {'; '.join(line['errors'])}"
        return text if len(text) <= _MOST_OF_AN_ERROR else f"{text[: _MOST_OF_AN_ERROR - 1]}…"
    return line["speed_up"]["text"] if line["speed_up"] else _NONE


def _seconds(line: Line, part: str) -> str:
    found = line["seconds"].get(part)
    return _NONE if found is None else _span(found)


def _span(found: dict[str, float]) -> str:
    digits = 2 if found["median"] < 10 else 1
    text = f"{found['median']:.{digits}f}"
    low, high = f"{found['p20']:.{digits}f}", f"{found['p80']:.{digits}f}"
    return text if low == high else f"{text} ({low}–{high})"


def _quality(line: Line, name: str, digits: int, worst: str = "least") -> str:
    found = line["quality"].get(name)
    if found is None:
        return "same bits" if name == "psnr_db" and line["same_bits"] and not line["baseline"] else _NONE
    mean, least = f"{found['mean']:.{digits}f}", f"{found[worst]:.{digits}f}"
    return mean if mean == least else f"{mean} ({least})"


def _rate(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"


def _bytes(value: float | None) -> str:
    return f"{value / 1e6:,.0f} MB" if value else _NONE


def _throughput(line: Line) -> str:
    found = line["results_per_minute"]
    return ", ".join(f"{batch}: {value:.2f}" for batch, value in found.items()) if len(found) > 1 else _NONE


def _accuracy(line: Line) -> str:
    found = line["prompt_accuracy"]
    return _NONE if found is None else f"{found['all']:.2f}"


_COLUMNS: list[tuple[str, Any]] = [
    ("speed-up", _speed),
    ("seconds (p20–p80)", lambda line: _seconds(line, "total")),
    ("block calls", lambda line: _share(line["block_calls"])),
    ("PSNR dB (least)", lambda line: _quality(line, "psnr_db", 1)),
    ("SSIM (least)", lambda line: _quality(line, "ssim", 3)),
    ("VMAF (least)", lambda line: _quality(line, "vmaf", 1)),
    ("LPIPS (most)", lambda line: _quality(line, "lpips", 3, "most")),
    ("CLIP score", lambda line: _quality(line, "clip_score", 1)),
    ("motion", lambda line: _quality(line, "motion_ratio", 2)),
    ("prompt accuracy", _accuracy),
    ("a minute, by batch", _throughput),
    ("peak", lambda line: _bytes(line["peak_bytes"])),
    ("held", lambda line: _bytes(line["held_bytes"])),
]
_PARTS: list[tuple[str, Any]] = [
    ("text encoder s", lambda line: _seconds(line, "text_encoder")),
    ("denoiser s", lambda line: _seconds(line, "denoiser")),
    ("VAE s", lambda line: _seconds(line, "vae")),
    ("steps/s", lambda line: _rate(line["steps_per_second"], 2)),
    ("tokens/s", lambda line: _rate(line["tokens_per_second"], 0)),
    ("MS-SSIM (least)", lambda line: _quality(line, "ms_ssim", 3)),
    ("flicker (most)", lambda line: _quality(line, "flicker_ratio", 2, "most")),
]
_TITLES = {
    "psnr_db": "PSNR",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "vmaf": "VMAF",
    "lpips": "LPIPS",
    "motion_ratio": "motion beside the baseline's",
    "flicker_ratio": "flicker beside the baseline's",
    "motion": "motion",
    "flicker": "flicker",
    "clip_score": "CLIP score",
    "prompt_accuracy": "prompt accuracy",
}
# With which option the weights of a figure are given.
_WEIGHTS = {"lpips": "--lpips", "clip_score": "--clip-model"}
_ALWAYS = ("speed-up", "seconds (p20–p80)")
