"""The saved cells as one page for people, and as a few lines for a terminal."""

from __future__ import annotations

from typing import Any

from bench.gpu_suite.cells import Results
from bench.gpu_suite.tiles import proposal

Row = dict[str, Any]
# What is asked of attention: (cell, cases, speed-up over the fastest dense backend).
AIMS = ("wan-14b-720p/block64/0.125", ("none, all", "zeroth, all", "hybrid, all"), 5.0)
# What is asked of pipelines: the most that the recorder may add, and that the weights in NVFP4 may take, in GB.
RECORDER_AIM, STORED_AIM = 0.01, 11.0
# Figures that a row has only where the kernels behind it are right.
_SPEED_UPS = ("speed_up", "over_flex")
# The kernels that a part's speed-ups stand on, as their cells begin in the part `correctness`; "" is all of them.
_STANDS_ON = {
    "attention": ("block_attention/", "block_statistics/"),
    "linears": ("rotate", "quantize", "dequantize", "int8_linear", "nvfp4", "rounding_nvfp4"),
    "pipelines": ("",),
}


def withheld(part: str, correctness: Results, *, finished: bool) -> str | None:
    """Why no speed-up of a part may be told, by what is known of the kernels that it stands on; None where it may."""
    begins = _STANDS_ON.get(part)
    if begins is None:
        return None
    under = {name: cell for name, cell in correctness.items() if name.startswith(begins)}
    red = [name for name, cell in under.items() if cell["state"] != "done" or _wrong(cell)]
    if red:
        return f"{len(red)} of {len(under)} checks of its kernels are red, the first is {red[0]}"
    if not finished or not under:
        return "the part correctness is not finished"
    return None


def page(
    environment: dict[str, Any], parts: dict[str, Results], unfinished: dict[str, str], silent: dict[str, str]
) -> str:
    """Everything that was measured, what failed, what was not run, and in which environment.

    `silent` says of parts why no speed-up of them is told, as `withheld` does.
    """
    lines = ["# Results of bench.gpu_suite", "", "Printed by `python -m bench.gpu_suite`.", ""]
    lines += [", ".join(f"{key}: {value}" for key, value in environment.items() if value is not None), ""]
    if environment.get("device_kind") == "cpu":
        lines += ["Made on a CPU, to try the suite itself: no figure here says anything about a GPU.", ""]
    for part, results in parts.items():
        lines += [f"# {part}", "", *_part(part, results, unfinished.get(part), silent.get(part)), ""]
    return "\n".join(lines)


def summary(part: str, results: Results, silent: str | None = None) -> str:
    """What a terminal shows of a part: the count, the aims, and what went wrong."""
    lines = [f"{part}: {_count(results)}"]
    if part == "correctness":
        lines += [f"  wrong: {name}: {_error(cell)}" for name, cell in results.items() if _wrong(cell)]
    lines += [f"  {line}" for line in _aims(part, results, silent)]
    return "\n".join(lines + [f"  {line}" for line in _not_measured(results)])


def aims_of_attention(results: Results) -> list[str]:
    """The aims beside the figures: against dense at one density, against FlexAttention in every cell that has it."""
    name, cases, wanted = AIMS
    lines = []
    for case in cases:
        found = results.get(name, {}).get("rows", {}).get(case, {}).get("speed_up")
        said = f"not measured, aim {wanted:g}×" if found is None else _judged(found, wanted)
        lines.append(f"{name}, {case}, over the fastest dense backend: {said}")
    for name, cell in results.items():
        found = cell.get("rows", {}).get("none, kernel", {}).get("over_flex")
        if found is not None:
            lines.append(f"{name}, over FlexAttention: {_judged(found, 1.0)}")
    return lines


def aims_of_linears(results: Results) -> list[str]:
    """The aims beside the figures: the whole linear against 16 bits, and the conversion's share of the product."""
    lines = []
    for name, cell in results.items():
        if "rows" in cell:
            share = cell["conversion_share"]
            lines.append(f"{name}, over linear: {_judged(cell['rows']['int8, all']['speed_up'], 1.5)}")
            lines.append(
                f"{name}: conversion {share:.1%} of the product, aim under 2%, {'met' if share < 0.02 else 'not met'}"
            )
    return lines


def aims_of_pipelines(results: Results) -> list[str]:
    """The aims beside the figures: every setting against the plain pipeline, what the recorder adds, and the bytes of
    weights in NVFP4."""
    lines = []
    for name, cell in results.items():
        rows = cell.get("rows", {})
        if "accelerated" in rows:
            found = rows["accelerated"].get("speed_up")
            lines.append(f"{name}: " + (f"no speed-up: {cell['withheld']}" if found is None else _judged(found, 1.0)))
        for case, row in rows.items():
            if "more" in row:
                low, high = row["least"], row["most"]
                met = "met" if high < RECORDER_AIM else "not met" if low >= RECORDER_AIM else "within the noise of it"
                told = f"{row['more']:+.2%} ({low:+.2%} to {high:+.2%})"
                lines.append(f"{name}, {case}: {told}, aim under {RECORDER_AIM:.0%}: {met}")
        if "nvfp4-weight" in rows:
            held = rows["nvfp4-weight"]["weights_gb"]
            met = "met" if held < STORED_AIM else "not met"
            lines.append(f"{name}: {held:.2f} GB, aim under {STORED_AIM:g} GB: {met}")
    return lines


def _judged(found: Row, wanted: float) -> str:
    """A speed-up beside what is asked of it, which it has met or not only by more than its spread."""
    ratio, spread = found["ratio"], found["spread"]
    aim = "above 1×" if wanted == 1.0 else f"{wanted:g}×"
    if spread is None:
        return f"{found['text']}, aim {aim}"
    met = "met" if ratio - spread >= wanted else "not met" if ratio + spread < wanted else "within the spread of it"
    return f"{found['text']}, aim {aim}: {met}"


_AIMS = {"attention": aims_of_attention, "linears": aims_of_linears, "pipelines": aims_of_pipelines}


def _aims(part: str, results: Results, silent: str | None) -> list[str]:
    if part not in _AIMS or not results:
        return []
    return [f"no speed-up is told: {silent}"] if silent else _AIMS[part](results)


def table(rows: dict[str, Row], heading: str = "") -> list[str]:
    """Rows of figures by name; a figure that a row has not stays empty."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [_line([heading, *columns]), "|" + "---|" * (len(columns) + 1)]
    return lines + [_line([name, *(_shown(row.get(column)) for column in columns)]) for name, row in rows.items()]


def _part(part: str, results: Results, why: str | None, silent: str | None) -> list[str]:
    lines = [f"{_count(results)}{f' Not finished: {why}.' if why else ''}"]
    done = {name: cell for name, cell in results.items() if cell["state"] == "done"}
    if part == "correctness" and done:
        columns = ("error", "bound", "same_bits", "correct")
        lines += ["", *table({name: {c: cell[c] for c in columns} for name, cell in done.items()}, "case")]
    elif part == "tuning" and done:
        columns = ("ms", "tflops", "registers", "spills", "error")
        rows = {name: {c: cell[c] for c in columns if c in cell} for name, cell in done.items()}
        lines += ["", *proposal(done), "", *table(rows, "tile")]
    else:
        lines += ["", *(f"- {line}" for line in _aims(part, results, silent))]
        for name, cell in done.items():
            beside = [
                f"{k}: {v}" for k, v in cell.items() if k not in ("cell", "state", "rows") and v not in ({}, None)
            ]
            lines += ["", f"## {name}", "", ", ".join(beside)]
            lines += ["", *table(_told(cell["rows"], silent))] if "rows" in cell else []
    bad = _not_measured(results)
    return [*lines, "", *(f"- {line}" for line in bad)] if bad else lines


def _told(rows: dict[str, Row], silent: str | None) -> dict[str, Row]:
    """The rows without speed-ups where none may be told."""
    left_out = _SPEED_UPS if silent else ()
    return {name: {key: value for key, value in row.items() if key not in left_out} for name, row in rows.items()}


def _count(results: Results) -> str:
    done = [cell for cell in results.values() if cell["state"] == "done"]
    if not results:
        return "nothing was run."
    wrong = [cell for cell in done if _wrong(cell)]
    checked = any("correct" in cell for cell in done)
    verdict = f", {len(done) - len(wrong)} of them within their bounds and the same twice" if checked else ""
    return f"{len(done)} of {len(results)} cells that began are done{verdict}."


def _wrong(cell: Row) -> bool:
    return cell["state"] == "done" and not cell.get("correct", True)


def _error(cell: Row) -> str:
    error = "not a number" if cell["error"] is None else f"{cell['error']:.2e}"
    return f"error {error}, bound {cell['bound']:.0e}{'' if cell['same_bits'] else ', other bits the second time'}"


def _not_measured(results: Results) -> list[str]:
    bad = {name: cell for name, cell in results.items() if cell["state"] != "done"}
    lines = [f"{name}: {cell['state']}: {cell['error']}" for name, cell in bad.items()]
    for name, cell in results.items():
        lines += [f"{name}: {rival}: {why}" for rival, why in cell.get("refused", {}).items()]
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, dict):
        return str(value["text"])
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        return f"{value:.1e}"
    return "" if value is None else str(value)


def _line(entries: list[str]) -> str:
    return "| " + " | ".join(entries) + " |"
