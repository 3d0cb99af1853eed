"""Checks every kernel on a GPU, times it against its rivals, runs the pipelines, and writes the results.

python -m bench.gpu_suite [--out FOLDER] [--minutes N] [--only PART ...]

Parts: correctness, small (what moves memory), attention (against the dense backends and FlexAttention), pipelines,
tuning (tiles of block attention). Each finished cell is saved at once as a JSON line in the folder; the same command
again goes on where the last one was stopped, and measures nothing twice. A cell that fails is recorded with its error,
and one that takes the device down is left behind by a new process. The kernels' parts need torch and triton; the
pipelines also what Accel itself needs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from accel.measure.timing import machine
from bench.gpu_suite import report
from bench.gpu_suite.cells import Cells, DeviceLost, OutOfTime

PARTS = ("correctness", "small", "attention", "pipelines", "tuning")
# What a worker says with its exit code.
LOST, OUT_OF_TIME = 75, 76


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU is at hand: bench.gpu_suite needs one (--device cpu --tiny tries its own code)", file=sys.stderr)
        return 2
    if options.device == "cpu" and not options.tiny:
        print("on a CPU the suite only tries its own code: add --tiny", file=sys.stderr)
        return 2
    folder = options.out or _results_folder(options.device)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    if options.worker:
        return _work(options, folder, deadline)
    environment = {**machine(options.device), **_device(options.device)}
    if options.commit:
        environment["commit"] = options.commit
    (folder / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")
    unfinished = []
    for part in options.only or PARTS:
        if not _supervise(options, folder, part, deadline):
            unfinished.append(part)
        results = Cells(folder / f"{part}.jsonl", options.device, deadline).results
        page = report.write(folder, part, environment, results)
        print(page if part != "correctness" else "\n".join(page.splitlines()[:8]), flush=True)
    if unfinished:
        print(f"time is up; not finished: {', '.join(unfinished)}. The same command goes on.")
    return 1 if unfinished else 0


def _supervise(options: argparse.Namespace, folder: Path, part: str, deadline: float) -> bool:
    """Runs a part in a process of its own, and in a new one whenever that dies; whether it is finished."""
    while True:
        minutes = (deadline - time.monotonic()) / 60
        if minutes <= 0:
            return False
        command = [sys.executable, "-m", "bench.gpu_suite", "--worker", "--only", part, "--out", str(folder)]
        command += ["--minutes", str(minutes), "--device", options.device] + ["--tiny"] * options.tiny
        code = subprocess.run(command, check=False).returncode
        if code == 0:
            return True
        if code == OUT_OF_TIME:
            return False
        if code == 1:
            print(f"{part}: could not begin, see above", file=sys.stderr)
            return False
        print(f"{part}: the process ended with {code}; going on in a new one", file=sys.stderr, flush=True)


def _work(options: argparse.Namespace, folder: Path, deadline: float) -> int:
    (part,) = options.only
    cells = Cells(folder / f"{part}.jsonl", options.device, deadline)
    try:
        with torch.inference_mode():
            importlib.import_module(f"bench.gpu_suite.{part}").run(cells, options.device, options.tiny)
    except OutOfTime:
        return OUT_OF_TIME
    except DeviceLost:
        return LOST
    return 0


def _results_folder(device: str) -> Path:
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return Path(__file__).parents[1] / "results" / "_".join(name.lower().replace("-", " ").split())


def _device(device: str) -> dict[str, Any]:
    if device != "cuda":
        return {}
    facts = torch.cuda.get_device_properties(0)
    return {
        "compute_capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory_gb": round(facts.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of the results (bench/results/<device>)")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no cell begins")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the suite itself")
    parser.add_argument("--commit", help="the commit that is measured, where there is no git checkout")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
