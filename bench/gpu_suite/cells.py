"""Cells: named measurements whose results are saved one by one, so that a run that is cut off loses none.

A file holds one JSON line when a cell begins and one when it ends. A cell that began and never ended took its process
with it: it is recorded as crashed when the file is next read, and not tried again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Measure = Callable[[], dict[str, Any]]


class OutOfTime(Exception):
    """The time given is used up; what is finished is saved."""


class DeviceLost(Exception):
    """The device answers no more in this process, as after an illegal memory access."""


class Cells:
    """The cells of one part, in a file of JSON lines.

    Args:
        path: of the file; made when it is not there.
        device: what is asked for a sign of life after a failure.
        deadline: of `time.monotonic`, after which no cell begins.
    """

    def __init__(self, path: Path, device: str, deadline: float) -> None:
        self._path = path
        self._device = device
        self._deadline = deadline
        self.results = _read(path)
        for name, line in self.results.items():
            if line["state"] == "began":
                self._write({"cell": name, "state": "crashed", "error": "the process ended in this cell"})

    def run(self, name: str, measure: Measure, **settings: Any) -> None:
        """Measures a cell, or does nothing when the file has it. A failure is a result too."""
        if name in self.results:
            return
        if time.monotonic() > self._deadline:
            raise OutOfTime
        self._write({"cell": name, "state": "began", **settings})
        began = time.monotonic()
        try:
            found = {"state": "done", **measure()}
        except Exception as error:
            found = {"state": "failed", "error": f"{type(error).__name__}: {_first_lines(error)}"}
        self._write({"cell": name, **settings, **found, "wall_seconds": round(time.monotonic() - began, 2)})
        if found["state"] == "failed" and not _alive(self._device):
            raise DeviceLost(found["error"])

    def _write(self, line: dict[str, Any]) -> None:
        self.results[line["cell"]] = line
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # Cut off while it was written.
        results[line["cell"]] = line
    return results


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _alive(device: str) -> bool:
    if torch.device(device).type != "cuda":
        return True
    try:
        torch.cuda.empty_cache()
        torch.ones(1, device=device).add_(1).item()
    except Exception:
        return False
    return True
