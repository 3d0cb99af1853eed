"""The GPU suite on a CPU: that its parts run, that it goes on where it was stopped, and that failures are results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_suite import report
from bench.gpu_suite.__main__ import main
from bench.gpu_suite.cells import Cells, OutOfTime
from tests.repository.tree import ROOT


def later(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds


def test_a_cell_is_measured_once(tmp_path: Path) -> None:
    calls: list[str] = []

    def measure() -> dict[str, Any]:
        calls.append("called")
        return {"ms": 1.5}

    for _ in range(2):
        cells = Cells(tmp_path / "part.jsonl", "cpu", later())
        cells.run("one", measure, shape=(2, 3))
    assert calls == ["called"]
    assert cells.results["one"]["shape"] == [2, 3] and cells.results["one"]["ms"] == 1.5


def test_a_failure_is_a_result_and_the_others_go_on(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "part.jsonl", "cpu", later())

    def broken() -> dict[str, Any]:
        raise RuntimeError("out of memory:\n  tried to allocate too much")

    cells.run("broken", broken)
    cells.run("whole", lambda: {"ms": 1.0})
    assert cells.results["broken"]["state"] == "failed"
    assert cells.results["broken"]["error"] == "RuntimeError: out of memory: tried to allocate too much"
    page = report.markdown("small", {"device": "none"}, cells.results)
    assert "1 of 2 cells done" in page
    assert "- broken: failed: RuntimeError: out of memory: tried to allocate too much" in page


def test_a_cell_that_took_its_process_with_it_is_not_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    script = (
        "import os, time; from pathlib import Path; from bench.gpu_suite.cells import Cells\n"
        f"cells = Cells(Path({str(path)!r}), 'cpu', time.monotonic() + 60)\n"
        "cells.run('first', lambda: {'ms': 1.0})\n"
        "cells.run('deadly', lambda: os._exit(9))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script], check=False, env=environment).returncode == 9
    # A line that was being written when it happened.
    with path.open("a") as file:
        file.write('{"cell": "cut o')
    path.write_text(path.read_text() + "\n")
    cells = Cells(path, "cpu", later())
    cells.run("deadly", lambda: pytest.fail("tried again"))
    cells.run("next", lambda: {"ms": 2.0})
    assert {name: cell["state"] for name, cell in cells.results.items()} == {
        "first": "done",
        "deadly": "crashed",
        "next": "done",
    }


def test_no_cell_begins_when_time_is_up(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "part.jsonl", "cpu", time.monotonic() - 1)
    with pytest.raises(OutOfTime):
        cells.run("late", lambda: pytest.fail("began"))
    assert cells.results == {}


@pytest.mark.parametrize("arguments", [["--device", "cpu"], ["--device", "cuda"]])
def test_without_a_gpu_it_says_so(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "--tiny" in capsys.readouterr().err


def test_the_kernels_parts_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--device", "cpu", "--tiny", "--out", str(tmp_path), "--only", "correctness", "small", "attention"]
    assert main([*command, "--minutes", "0.05"]) == 1
    assert "The same command goes on" in capsys.readouterr().out
    assert main(command) == 0
    cells = {
        part: json.loads((tmp_path / f"{part}.json").read_text()) for part in ("correctness", "small", "attention")
    }
    assert all(cell["state"] == "done" for part in cells.values() for cell in part["cells"].values())
    found = cells["correctness"]["cells"]
    assert len(found) == 3 * (10 + 3 + 1)
    assert all(cell["correct"] and cell["same_bits"] and 0 < cell["error"] < cell["bound"] for cell in found.values())
    rows = cells["attention"]["cells"]["tiny/0.125"]["rows"]
    assert rows["dense"]["error"] == 0 < rows["hybrid, all"]["error"] < rows["none, all"]["error"] < 0.5
    whole = cells["attention"]["cells"]["tiny/1"]["rows"]
    assert whole["none, all"]["error"] < 1e-5
    assert cells["small"]["environment"]["device"] and "gb_per_s" in cells["small"]["cells"]["copy"]["rows"]["copy"]
    assert (tmp_path / "correctness.md").read_text().count("\n| ") == len(found) + 1
