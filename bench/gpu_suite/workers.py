"""The processes that measure: a part runs in one or several, and in new ones whenever they die."""

from __future__ import annotations

import argparse
import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench.gpu_suite.cells import LIMIT, Cells, DeviceLost, OutOfTime, gather

# What a worker says with its exit code.
LOST, OUT_OF_TIME = 75, 76
# Parts whose cells may run beside each other, since they time nothing.
_SIDE_BY_SIDE = ("correctness",)
# Parts that spend most of their time in the compiler: they are rehearsed side by side, then measured from its cache.
_REHEARSED = ("tuning",)


def finish(options: argparse.Namespace, folder: Path, part: str, deadline: float) -> str | None:
    """Runs a part to its end, or says what stood in the way."""
    several = max(1, options.processes)
    before = gather(folder, part)
    if part in _REHEARSED:
        _run(options, folder, part, min(deadline, time.monotonic() + LIMIT), several, rehearse=True)
    while time.monotonic() < deadline:
        codes = _run(options, folder, part, deadline, several if part in _SIDE_BY_SIDE else 1)
        late = time.monotonic() >= deadline
        results = gather(folder, part, cut_off=late and -signal.SIGALRM in codes)
        if not any(codes):
            return None
        if late or OUT_OF_TIME in codes:
            break
        if 1 in codes:
            return "a process could not begin; its error stands above"
        if len(results) == len(before):
            return f"its process ended with {codes} before any cell"
        before = results
        print(f"{part}: processes ended with {codes}; going on in new ones", file=sys.stderr, flush=True)
    return "time was up; the same command goes on"


def work(options: argparse.Namespace, folder: Path) -> int:
    """What a worker does: the cells of its share, until they are done or time is up."""
    (part,) = options.only
    share = tuple(options.share)
    cells = Cells(folder, part, options.device, options.until, share=share, rehearse=options.rehearse)
    try:
        with torch.inference_mode():
            importlib.import_module(f"bench.gpu_suite.{part}").run(cells, options.device, options.tiny)
    except OutOfTime:
        return OUT_OF_TIME
    except DeviceLost:
        return LOST
    return 0


def _run(
    options: argparse.Namespace, folder: Path, part: str, deadline: float, number: int, *, rehearse: bool = False
) -> list[int]:
    """The exit codes of so many workers, each with its share."""
    command = [sys.executable, "-m", "bench.gpu_suite", "--worker", "--only", part, "--out", str(folder)]
    command += ["--until", str(deadline), "--device", options.device]
    command += ["--tiny"] * options.tiny + ["--rehearse"] * rehearse
    shares = [["--share", str(index), str(number)] for index in range(number)]
    workers = [subprocess.Popen([*command, *share]) for share in shares]
    try:
        return [worker.wait() for worker in workers]
    except BaseException:
        # Interrupted: nothing is left running, and what is saved stays.
        for worker in workers:
            worker.kill()
            worker.wait()
        raise
