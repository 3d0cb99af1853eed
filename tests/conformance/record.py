"""The record of the whole grid: a line for each finished test, so that a run that was stopped goes on, and the table.

`--record FILE` keeps the lines, of one state of the code; `python -m tests.conformance.record FILE` writes the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import accel
from accel.errors import AccelError
from accel.measure.timing import machine
from tests.conformance.cases import FAMILIES, METHODS, MethodCase
from tests.tiny_pipelines import TinyCase

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "conformance.md"
RESULTS = ROOT / "bench" / "results" / "conformance.json"
NOT_RUN = "not run"
_CODE = ("accel", "kernels", "pipelines", "tests", "pyproject.toml")


class Record:
    """A plugin of pytest that writes down how each test of the grid ended, and leaves out those that passed before.

    What is left to do is written down too, before it begins: a run that was stopped must not look like a whole one.
    """

    def __init__(self, path: Path) -> None:
        self.state = state_of_the_code()
        self._path = path
        if path.exists():
            # What a run that was killed has left of its last line goes.
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        last = {line["test"]: line["ended"] for line in lines(path) if line["state"] == self.state}
        self._done = {test for test, ended in last.items() if ended in ("passed", "skipped")}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves out what is done."""
        known = [item for item in items if item.nodeid in self._done]
        items[:] = [item for item in items if item.nodeid not in self._done]
        config.hook.pytest_deselected(items=known)
        for item in items:
            self._write(item, NOT_RUN, "")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
        """Writes a line when the test itself is over, or cannot begin."""
        report = (yield).get_result()
        if report.when != "call" and not (report.failed or report.skipped):
            return
        reason = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else ""
        if report.failed:
            reason = str(call.excinfo.value).splitlines()[0] if call.excinfo and str(call.excinfo.value) else "failed"
        self._write(item, report.outcome, reason)

    def _write(self, item: pytest.Item, ended: str, reason: str) -> None:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if not {"method", "case"} <= params.keys():
            return
        line = {
            "test": item.nodeid,
            "what": getattr(item, "originalname", item.name),
            "family": params["case"].name,
            "method": params["method"].name,
            "ended": ended,
            "reason": reason,
            "state": self.state,
        }
        with self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def state_of_the_code() -> dict[str, Any]:
    """The commit, a digest of what differs from it in the code (None where nothing does), and torch's version."""
    here = machine()
    changes = ""
    if here["commit"]:
        command = ["git", "-C", str(ROOT), "diff", "HEAD", "--", *_CODE]
        changes = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else None
    return {"commit": here["commit"], "modified": digest, "torch": here["torch"]}


def lines(path: Path) -> list[dict[str, Any]]:
    """What a record holds; half a line at its end is left out."""
    if not path.exists():
        return []
    whole = [text for text in path.read_text().splitlines(keepends=True) if text.endswith("\n")]
    return [json.loads(text) for text in whole]


def table(found: Iterable[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By family and method: "state" (works, fails, refused or not run to the end), how many "tests" passed, "notes".

    The last line of a test counts.
    """
    last: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for line in found:
        last.setdefault((line["family"], line["method"]), {})[line["test"]] = line
    return {
        name: {method: _cell(case, METHODS[method], last.get((name, method), {})) for method in METHODS}
        for name, case in FAMILIES.items()
    }


def _cell(case: TinyCase, method: MethodCase, tests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if method.on(case.family) is None:
        return {"state": "refused", "tests": 0, "notes": [_refusal(case, method)]}
    by_end = {end: [line for line in tests.values() if line["ended"] == end] for end in ("passed", "failed", "skipped")}
    notes = {f"{line['what'].removeprefix('test_')}: {line['reason']}" for line in by_end["failed"] + by_end["skipped"]}
    whole = by_end["passed"] and not any(line["ended"] == NOT_RUN for line in tests.values())
    state = "fails" if by_end["failed"] else "works" if whole else NOT_RUN
    return {"state": state, "tests": len(by_end["passed"]), "notes": sorted(notes)}


def _refusal(case: TinyCase, method: MethodCase) -> str:
    try:
        accel.enable(case.build(), **method.active).disable()
    except AccelError as error:
        return str(error)
    raise AssertionError(f"{method.name} is said to be refused on {case.name}, and is not")


def markdown(cells: dict[str, dict[str, dict[str, Any]]], state: dict[str, Any]) -> str:
    """The table as a page."""
    notes: dict[str, int] = {}
    rows = [
        f"| {family} | {' | '.join(_short(cell, notes) for cell in row.values())} |" for family, row in cells.items()
    ]
    modified = " with changes" if state["modified"] else ""
    text = [
        "# Every method on every family",
        "",
        "Written by `make conformance`, which runs all conformance tests with every method on every tiny random",
        "pipeline: the method acts and repeats itself, its identities give the plain bits, an exception in the middle",
        "and another size leave the next run clean, with model and group offload, a LoRA and compiled blocks it gives",
        "what it gives without them, and it comes off without a trace. A quantization takes a LoRA while it is on,",
        "refuses to fuse one, and acts on weights that were stored, saved and read again. Numbers lead to the notes",
        "below. Real weights of these families have not been run here.",
        "",
        f"commit {state['commit']}{modified}, torch {state['torch']}, diffusers {version('diffusers')}",
        "",
        f"| pipeline | {' | '.join(METHODS)} |",
        "|" + "---|" * (len(METHODS) + 1),
        *rows,
        "",
        *(f"{number}. {note}" for note, number in notes.items()),
    ]
    return "\n".join(text).rstrip() + "\n"


def _short(cell: dict[str, Any], notes: dict[str, int]) -> str:
    numbers = [str(notes.setdefault(note, len(notes) + 1)) for note in cell["notes"]]
    word = f"**{cell['state']}**" if cell["state"] == "fails" else cell["state"]
    return f"{word} [{', '.join(numbers)}]" if numbers else word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    found = lines(parser.parse_args().record)
    if not found:
        parser.error("the record is empty: run pytest tests/conformance --grid=whole --record FILE")
    state = found[-1]["state"]
    cells = table(line for line in found if line["state"] == state)
    TABLE.write_text(markdown(cells, state))
    RESULTS.write_text(json.dumps({"state": state, "cells": cells}, indent=1) + "\n")
    states = Counter(cell["state"] for row in cells.values() for cell in row.values())
    counted = ", ".join(f"{count} {word}" for word, count in states.items())
    print(f"{TABLE.relative_to(ROOT)}: {len(cells)} pipelines with {len(METHODS)} methods: {counted}")
    if states["fails"] or states[NOT_RUN]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
