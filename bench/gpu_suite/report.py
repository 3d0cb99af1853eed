"""The saved cells as result files: one JSON and one page for people for each part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Results = dict[str, dict[str, Any]]


def write(folder: Path, part: str, environment: dict[str, Any], results: Results) -> str:
    """Writes `<part>.json` and `<part>.md` and returns the page."""
    page = markdown(part, environment, results)
    settings = {"command": f"python -m bench.gpu_suite --only {part}", "environment": environment}
    (folder / f"{part}.json").write_text(json.dumps({**settings, "cells": results}, indent=1) + "\n")
    (folder / f"{part}.md").write_text(page)
    return page


def markdown(part: str, environment: dict[str, Any], results: Results) -> str:
    """What was measured, what failed, and what began and never ended."""
    lines = [f"# {part}", "", f"Printed by `python -m bench.gpu_suite --only {part}`.", ""]
    lines += [", ".join(f"{key}: {value}" for key, value in environment.items() if value is not None), ""]
    done = {name: cell for name, cell in results.items() if cell["state"] == "done"}
    if not results:
        return "\n".join([*lines, "Nothing was run.", ""])
    lines += [f"{len(done)} of {len(results)} cells done.", ""]
    if part == "correctness":
        wrong = [name for name, cell in done.items() if not cell["correct"]]
        lines += [f"{len(done) - len(wrong)} within their bounds and the same twice; {len(wrong)} not.", ""]
        lines += _table(["case", "error", "bound", "same bits"], [_checked(n, c) for n, c in done.items()])
    else:
        for name, cell in done.items():
            lines += [f"## {name}", "", *_cell(cell), ""]
    bad = {name: cell for name, cell in results.items() if cell["state"] != "done"}
    if bad:
        lines += ["", "## Not measured", ""] + [
            f"- {name}: {c['state']}: {c.get('error', '')}" for name, c in bad.items()
        ]
    return "\n".join(lines) + "\n"


def _checked(name: str, cell: dict[str, Any]) -> list[str]:
    return [name, f"{cell['error']:.2e}", f"{cell['bound']:.0e}", "yes" if cell["same_bits"] else "NO"]


def _cell(cell: dict[str, Any]) -> list[str]:
    beside = [
        f"{key}: {value}"
        for key, value in cell.items()
        if key not in ("cell", "state", "rows") and value not in ({}, None)
    ]
    lines = [", ".join(beside)] if beside else []
    rows = cell.get("rows")
    if rows:
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        lines += [
            "",
            *_table(["", *columns], [[name, *(str(row.get(c, "")) for c in columns)] for name, row in rows.items()]),
        ]
    return lines


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]
