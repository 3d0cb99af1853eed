"""What README and docs quote of `bench/results`, families and presets: written by a command, and held by a test.

python -m bench.quoted

A document has a line `<!-- quoted: NAME -->` before each part and `<!-- end -->` behind it.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accel.methods.rules import Place, standing
from accel.pipelines.families import families
from accel.presets import PRESETS, preset
from bench.families import in_full, in_short, origin

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_PLACE = re.compile(r"(<!-- quoted: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# The forms of `bench.sparse_attention`, and what the documents call them.
_FORMS = {
    "dropped": "blocks dropped",
    "zeroth": "zeroth tail",
    "PISA": "PISA (hybrid tail)",
    "AdaSpa": "AdaSpa",
    "search": '`router="search"`',
}


def sparse_attention() -> list[str]:
    """Quality and speed of every form at every density."""
    rows: dict[str, Any] = {row["setting"]: row for row in _read("cpu/sparse_attention.json")["rows"]}
    densities = list(dict.fromkeys(name.rpartition(" ")[2] for name in rows if "density" in name))
    found = [("density", *_FORMS.values())]
    for density in densities:
        found.append((density, *(_in_a_cell(rows[f"{form}, density {density}"]) for form in _FORMS)))
    return _table(found)


def caches() -> list[str]:
    """Every setting of `bench.tdc`, by the steps of the plain clips that it is held against."""
    columns = ("steps", "setting", "speed", "block calls", "PSNR (least)", "SSIM", "shows its prompt", "motion", "held")
    found = [columns]
    steps = 0
    for name in ("tdc", "tdc_50_steps"):
        for row in _read(f"cpu/{name}.json")["rows"]:
            if _plain(row):
                steps = row["steps"]
            held = f"{row['held_mb']:.1f} MB"
            found.append((str(steps), *_in_columns(row), _shown(row["motion"], "{:.2f}"), held))
    return _table(found)


def reuse() -> list[str]:
    """Of the settings of `bench.tdc` for 24 steps, those at 1.6 times the speed or more, the nearest to plain first."""
    first, *others = _read("cpu/tdc.json")["rows"]
    fast = [row for row in others if (row["loop_speed_up"] or 0.0) >= 1.6]
    fast.sort(key=lambda row: -statistics.mean(row["psnr_db"]))
    return _table(
        [("setting", "speed", "block calls", "PSNR (least)", "SSIM", "shows its prompt")]
        + [_in_columns(row) for row in (first, *fast)]
    )


def presets() -> list[str]:
    """What the preset `fast` comes to on every family."""
    found = [("family", "attention", "its settings", "their source", "cache")]
    for name, family in families().items():
        config = preset("fast")
        methods, left_out = standing(config.methods, config.optional, Place(family))
        settled = {method.method: method.model_dump() for method in methods}
        pisa, tdc = settled.get("pisa"), settled["tdc"]
        source = "–" if pisa is None else origin(family)
        words = "; ".join(left_out).removeprefix("pisa is left out: ").partition(";")[0]
        if pisa is not None:
            parts = ("density", "router", "dense_steps", "dense_layers")
            words = ", ".join(f"{part}={pisa[part]}" for part in parts)
        found.append((name, "dense" if pisa is None else "PISA", words, source, f"tdc at {tdc['threshold']:g}"))
    return _table(found)


TABLES: dict[str, Callable[[], list[str]]] = {
    "sparse_attention": sparse_attention,
    "caches": caches,
    "reuse": reuse,
    "presets": presets,
    "families": in_full,
    "pipelines": lambda: _table(in_short()),
}


def renewed(text: str) -> str:
    """A document with its tables as the results have them."""

    def table(match: re.Match[str]) -> str:
        return match[1] + "\n".join(TABLES[match[2]]()) + "\n" + match[3]

    return _PLACE.sub(table, text)


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _in_a_cell(row: dict[str, Any]) -> str:
    decibels, similarity = (statistics.mean(v for v in row[key] if v is not None) for key in ("psnr_db", "ssim"))
    # Where the clips are no results, no speed-up is said.
    shown, times = _accuracy(row), _shown(row["loop_speed_up"], "{:.2f}×")
    return f"{decibels:.1f} dB, {similarity:.3f}, {shown}, {times}"


def _plain(row: dict[str, Any]) -> bool:
    """Whether a row is what those behind it are held against."""
    return not row["config"] and all(decibels is None for decibels in row["psnr_db"])


def _in_columns(row: dict[str, Any]) -> tuple[str, ...]:
    names = {f"tdc, threshold {config['cache'][0]['threshold']:g}": name for name, config in PRESETS.items()}
    name = row["setting"]
    named = f"{name} (`{names[name]}`)" if name in names else name
    speed = "failed" if row["errors"] else _shown(row["loop_speed_up"], "{:.2f}×")
    calls, shown = _shown(row["block_calls"], "{:.0%}"), _accuracy(row)
    if not row["psnr_db"] or _plain(row):
        return named, speed, calls, "-", "-", shown
    decibels = f"{statistics.mean(row['psnr_db']):.1f} ({min(row['psnr_db']):.1f}) dB"
    return named, speed, calls, decibels, f"{statistics.mean(row['ssim']):.3f}", shown


def _accuracy(row: dict[str, Any]) -> str:
    return _shown(row["prompt_accuracy"].get("all"), "{:.2f}")


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def main() -> None:
    """Writes the tables anew."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        if renewed(text) != text:
            path.write_text(renewed(text), encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: written anew")


if __name__ == "__main__":
    main()
