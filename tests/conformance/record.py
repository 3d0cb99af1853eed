"""The record of the whole grid: a line for each finished test, so that a run that was stopped goes on, and the table.

`--record FILE` keeps the lines, of one state of code and libraries; `python -m tests.conformance.record FILE` writes
the table when every cell is whole, and with `--partial` as it is.
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
from tests.conformance.cases import FAMILIES, METHODS, MethodCase
from tests.conformance.sample import TESTS, WHOLE_ONLY, is_for
from tests.tiny_pipelines import KIN, TinyCase

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "conformance.md"
RESULTS = ROOT / "bench" / "results" / "conformance.json"
NOT_RUN = "not run"
_CODE = ("accel", "kernels", "pipelines", "tests", "pyproject.toml")
_LIBRARIES = ("torch", "diffusers", "transformers", "peft")
_PROPERTY = "cell of the grid"


class Record:
    """A plugin of pytest that writes down how each test of the grid ended, and leaves out those that passed before.

    What is left to do is written down too, before it begins: a run that was stopped must not look like a whole one.
    Of several processes (`pytest -n`) the first that runs tests says what is left, and the one that starts them, which
    is told of every end, writes those down.
    """

    def __init__(self, path: Path, worker: str | None = None) -> None:
        self.state = state_of_the_code()
        self._commit = commit()
        self._path = path
        self._starts = worker is None or worker == "gw0"
        self._is_told = worker is None
        if self._is_told and path.exists():
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
            params = getattr(getattr(item, "callspec", None), "params", {})
            if not {"method", "case"} <= params.keys():
                continue
            cell = {
                "test": item.nodeid,
                "what": getattr(item, "originalname", item.name),
                "family": params["case"].name,
                "method": params["method"].name,
            }
            # Goes along with the reports of the test, also to another process.
            item.user_properties.append((_PROPERTY, cell))
            if self._starts:
                self._write(cell, NOT_RUN, "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Writes a line when the test itself is over, or cannot begin or end."""
        cell = dict(report.user_properties).get(_PROPERTY)
        if not self._is_told or cell is None or (report.when != "call" and report.passed):
            return
        self._write(cell, report.outcome, _reason(report))  # type: ignore[arg-type]

    def _write(self, cell: dict[str, str], ended: str, reason: str) -> None:
        line = {**cell, "ended": ended, "reason": reason, "commit": self._commit, "state": self.state}
        with self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def _reason(report: pytest.TestReport) -> str:
    if report.skipped:
        return report.longrepr[2].removeprefix("Skipped: ")  # type: ignore[index, union-attr]
    if not report.failed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message.splitlines()[0] if crash is not None and crash.message else "failed"


def state_of_the_code() -> dict[str, Any]:
    """What a result hangs on: a digest of the code as it is, committed or not, and the libraries' versions."""
    digest = hashlib.sha256()
    names = _git("ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *_CODE).split("\0")
    for name in sorted(filter(None, names)):
        if (ROOT / name).is_file():
            digest.update(f"{name} {hashlib.sha256((ROOT / name).read_bytes()).hexdigest()}\n".encode())
    return {"code": digest.hexdigest()[:16], **{name: version(name) for name in _LIBRARIES}}


def commit() -> str:
    """The commit, for people: what is not committed of the code is said with it."""
    changed = _git("status", "--porcelain", "--", *_CODE)
    return _git("rev-parse", "HEAD").strip() + (" with changes" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout


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
    passed, skipped = ({line["what"] for line in by_end[end]} for end in ("passed", "skipped"))
    needed = {test for test in TESTS if is_for(test, method)}
    # What else people do with a pipeline may be nothing that diffusers has for it.
    complete = needed <= passed and {test for test in WHOLE_ONLY if is_for(test, method)} <= passed | skipped
    whole = complete and not any(line["ended"] == NOT_RUN for line in tests.values())
    state = "fails" if by_end["failed"] else "works" if whole else NOT_RUN
    return {"state": state, "tests": len(by_end["passed"]), "notes": sorted(notes)}


def _refusal(case: TinyCase, method: MethodCase) -> str:
    try:
        accel.enable(case.build(), **method.active).disable()
    except AccelError as error:
        return str(error)
    raise AssertionError(f"{method.name} is said to be refused on {case.name}, and is not")


def markdown(cells: dict[str, dict[str, dict[str, Any]]], state: dict[str, Any], commit: str) -> str:
    """The table as a page."""
    notes: dict[str, int] = {}
    rows = [
        f"| {family} | {' | '.join(_short(cell, notes) for cell in row.values())} |" for family, row in cells.items()
    ]
    text = [
        "# Every method on every family",
        "",
        "Written by `make conformance`, which runs every test of `tests/conformance/test_methods.py`,",
        "`test_whole_grid.py` and `test_whole_grid_stored.py` with every method on every tiny random pipeline of its",
        "list: the method acts and repeats itself, its identities give the plain bits, an exception in the middle and",
        "another size leave the next run clean, with model and group offload it gives the same bits and with compiled",
        "blocks the same to rounding, with a LoRA and with the other form of guidance (one branch for two, or two for",
        "one) it acts, repeats itself and is no farther from the plain result than without them, and it comes off",
        "without a trace. A quantization takes a LoRA while it is on, refuses to fuse one, and acts on weights that",
        "were stored, saved and read again. Numbers lead to the notes below.",
        "",
        f"Further pipelines have no row, since the transformer of one that has is theirs: {', '.join(KIN)}. A test of",
        "each, with three methods at once, is in `test_kin.py`. Real weights of none of these have been run here.",
        "",
        f"commit {commit}, {', '.join(f'{name} {state[name]}' for name in _LIBRARIES)}",
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


def main(arguments: list[str] | None = None) -> None:
    """Writes the table of the record's last state."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("--partial", action="store_true", help="write the table with cells that are not run, too")
    asked = parser.parse_args(arguments)
    found = lines(asked.record)
    if not found:
        parser.error("the record is empty: run pytest tests/conformance --grid=whole --record FILE")
    state = found[-1]["state"]
    cells = table(line for line in found if line["state"] == state)
    states = Counter(cell["state"] for row in cells.values() for cell in row.values())
    counted = ", ".join(f"{count} {word}" for word, count in states.items())
    print(f"{TABLE.name}: {len(cells)} pipelines with {len(METHODS)} methods: {counted}")
    if states[NOT_RUN] and not asked.partial:
        raise SystemExit("nothing is written, since not all is run: run it again to go on, or add --partial")
    made_at = found[-1]["commit"]
    TABLE.write_text(markdown(cells, state, made_at))
    RESULTS.write_text(json.dumps({"commit": made_at, "state": state, "cells": cells}, indent=1) + "\n")
    if states["fails"] or states[NOT_RUN]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
