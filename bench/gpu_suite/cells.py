"""Cells: named measurements whose results are saved one by one, so that a run that is cut off loses none.

A part's file is written anew, whole, when a cell begins and when it ends. A cell that began and never ended took its
process with it; `gather` says so once no process works on the part any more. Several processes may share a part: each
takes every n-th cell and has a file of its own until `gather` puts them together.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Measure = Callable[[], dict[str, Any]]
Results = dict[str, dict[str, Any]]

# Seconds that a cell may take, and that one may go on after the time given is used up.
LIMIT, GRACE = 180.0, 40.0


class OutOfTime(Exception):
    """The time given is used up; what is finished is saved."""


class DeviceLost(Exception):
    """The device answers no more in this process, as after an illegal memory access."""


class Cells:
    """The cells of one part, or every n-th of them.

    Args:
        folder: of the results.
        part: the name of the part.
        device: what is asked for a sign of life after a failure.
        deadline: of `time.monotonic`, after which no cell begins.
        share: (i, n): only the cells whose number has the remainder i by n.
        rehearse: nothing is saved, and failures are passed over: for what a first run leaves in the compiler's cache.
    """

    def __init__(
        self,
        folder: Path,
        part: str,
        device: str,
        deadline: float,
        *,
        share: tuple[int, int] = (0, 1),
        rehearse: bool = False,
    ) -> None:
        index, of = share
        self._path = folder / (f"{part}.json" if of == 1 else f"{part}.share{index}.json")
        self._device, self._deadline, self._share, self._rehearse = device, deadline, share, rehearse
        self._known = load(folder / f"{part}.json")
        self.results = self._known if of == 1 else load(self._path)
        self._number = -1

    def run(self, name: str, measure: Measure, **settings: Any) -> None:
        """Measures a cell, or does nothing when it is saved already. A failure is a result too."""
        self._number += 1
        index, of = self._share
        if name in self._known or name in self.results or self._number % of != index:
            return
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise OutOfTime
        limit = min(LIMIT, left + GRACE)
        self._save({"cell": name, "state": "began", "limit_seconds": round(limit), **settings})
        began = time.monotonic()
        _alarm(limit)
        try:
            found = {"state": "done", **measure()}
            # A file with a NaN is no JSON: a figure that is no number is a failure of its cell.
            json.dumps(found, allow_nan=False)
        except Exception as error:
            found = {"state": "failed", "error": f"{type(error).__name__}: {_first_lines(error)}"}
        _alarm(0)
        self._save({"cell": name, **settings, **found, "wall_seconds": round(time.monotonic() - began, 2)})
        if found["state"] == "failed" and not _alive(self._device):
            raise DeviceLost(found["error"])

    def _save(self, line: dict[str, Any]) -> None:
        if not self._rehearse:
            self.results[line["cell"]] = line
            save(self._path, self.results)


def gather(folder: Path, part: str, *, cut_off: bool = False) -> Results:
    """All that is saved of a part, put into its one file; to be called when no process works on it.

    A cell that began and never ended is recorded as crashed and will not be tried again, unless `cut_off` says that it
    was only in the way when the time was up: then it is forgotten.
    """
    path = folder / f"{part}.json"
    shares = sorted(folder.glob(f"{part}.share*.json"))
    results = load(path)
    for share in shares:
        results |= load(share)
    for name, cell in list(results.items()):
        if cell["state"] != "began":
            continue
        if cut_off:
            del results[name]
        else:
            limit = cell["limit_seconds"]
            results[name] = {
                **cell,
                "state": "crashed",
                "error": f"the process ended in this cell, or it took longer than {limit} s",
            }
    if shares:
        results = dict(sorted(results.items()))
    save(path, results)
    for share in shares:
        share.unlink()
    return results


def retry(folder: Path, part: str) -> None:
    """Forgets what failed or crashed, so that it is measured again."""
    done = {name: cell for name, cell in gather(folder, part).items() if cell["state"] == "done"}
    save(folder / f"{part}.json", done)


def load(path: Path) -> Results:
    """The cells of a file; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else {}


def about(path: Path) -> dict[str, Any]:
    """What stands before the cells of a file; nothing where there is none."""
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: value for name, value in told.items() if name != "cells"}


def save(path: Path, results: Results, **about: Any) -> None:
    """Writes the file whole or not at all; `about` stands before the cells."""
    whole(path, json.dumps({**about, "cells": results}, indent=1) + "\n")


def whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _alarm(seconds: float) -> None:
    """Ends this process after so many seconds, also where it waits for the device and hears nothing; 0 takes it back.

    The signal's default is what ends it: a handler in Python would wait for the call into the driver to return.
    """
    if threading.current_thread() is threading.main_thread():
        signal.alarm(math.ceil(seconds))


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
