"""The saved cells as one page for people, and as a few lines for a terminal."""

from __future__ import annotations

from typing import Any

from bench.gpu_suite.cells import Results
from bench.gpu_suite.tiles import proposal

Row = dict[str, Any]
# What issue and design ask of attention: (cell, case, base, speed-up over it).
AIMS = (
    ("wan-14b-720p/block64/0.125", "none, all", "the fastest dense backend", 5.0),
    ("wan-14b-720p/block64/0.125", "zeroth, all", "the fastest dense backend", 5.0),
    ("wan-14b-720p/block64/0.125", "hybrid, all", "the fastest dense backend", 5.0),
)


def page(environment: dict[str, Any], parts: dict[str, Results], unfinished: dict[str, str]) -> str:
    """Everything that was measured, what failed, what was not run, and in which environment."""
    lines = ["# Results of bench.gpu_suite", "", "Printed by `python -m bench.gpu_suite`.", ""]
    lines += [", ".join(f"{key}: {value}" for key, value in environment.items() if value is not None), ""]
    if environment.get("device_kind") == "cpu":
        lines += ["Made on a CPU, to try the suite itself: no figure here says anything about a GPU.", ""]
    for part, results in parts.items():
        lines += [f"# {part}", "", *_part(part, results, unfinished.get(part)), ""]
    return "\n".join(lines)


def summary(part: str, results: Results) -> str:
    """What a terminal shows of a part: the count, the aims, and what went wrong."""
    lines = [f"{part}: {_count(results)}"]
    if part == "correctness":
        lines += [f"  wrong: {name}: {_error(cell)}" for name, cell in results.items() if _wrong(cell)]
    lines += [f"  {line}" for line in _AIMS.get(part, _none)(results)]
    return "\n".join(lines + [f"  {line}" for line in _not_measured(results)])


def aims_of_attention(results: Results) -> list[str]:
    """The aims beside the figures: against dense at one density, against FlexAttention in every cell that has it."""
    lines = []
    for name, case, base, wanted in AIMS:
        row = results.get(name, {}).get("rows", {}).get(case)
        found = f"{row['speed_up']:.2f}×" if row else "not measured"
        met = "" if row is None else ", met" if row["speed_up"] >= wanted else ", not met"
        lines.append(f"{name}, {case}: {found} over {base}, aim {wanted:g}×{met}")
    for name, cell in results.items():
        rows = cell.get("rows", {})
        if "flex" in rows and "none, kernel" in rows:
            times = rows["flex"]["ms"] / rows["none, kernel"]["ms"]
            lines.append(f"{name}: {times:.2f}× FlexAttention, aim above 1×, {'met' if times > 1 else 'not met'}")
    return lines


def aims_of_linears(results: Results) -> list[str]:
    """The aims beside the figures: the whole linear against 16 bits, and the conversion's share of the product."""
    lines = []
    for name, cell in results.items():
        if "rows" in cell:
            times, share = cell["rows"]["int8, all"]["speed_up"], cell["conversion_share"]
            lines.append(f"{name}: {times:.2f}× linear, aim 1.5×, {'met' if times >= 1.5 else 'not met'}")
            lines.append(
                f"{name}: conversion {share:.1%} of the product, aim under 2%, {'met' if share < 0.02 else 'not met'}"
            )
    return lines


def _none(results: Results) -> list[str]:
    return []


_AIMS = {"attention": aims_of_attention, "linears": aims_of_linears}


def table(rows: dict[str, Row], heading: str = "") -> list[str]:
    """Rows of figures by name; a figure that a row has not stays empty."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [_line([heading, *columns]), "|" + "---|" * (len(columns) + 1)]
    return lines + [_line([name, *(_shown(row.get(column)) for column in columns)]) for name, row in rows.items()]


def _part(part: str, results: Results, why: str | None) -> list[str]:
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
        lines += ["", *(f"- {line}" for line in _AIMS.get(part, _none)(results))]
        for name, cell in done.items():
            beside = [
                f"{k}: {v}" for k, v in cell.items() if k not in ("cell", "state", "rows") and v not in ({}, None)
            ]
            lines += ["", f"## {name}", "", ", ".join(beside)]
            lines += ["", *table(cell["rows"])] if "rows" in cell else []
    bad = _not_measured(results)
    return [*lines, "", *(f"- {line}" for line in bad)] if bad else lines


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
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        return f"{value:.1e}"
    return "" if value is None else str(value)


def _line(entries: list[str]) -> str:
    return "| " + " | ".join(entries) + " |"
