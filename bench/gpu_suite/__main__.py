"""Checks every kernel on a GPU, times it against its rivals, runs the pipelines, and writes the results.

python -m bench.gpu_suite [--out FOLDER] [--minutes N] [--only PART ...] [--retry]

Parts: correctness, attention (against the dense backends and FlexAttention), linears (INT8 against 16 bits), small (the
other operations, most of which move memory), pipelines, tuning (tiles, with what the compiler reports). Each finished
cell is saved at once; the same command again goes on where the last one was stopped, and measures nothing twice. A cell
that fails is recorded with its error; one that takes the device down or hangs is left behind by a new process. --retry
measures those again. A folder holds the results of one device and one state of the code: a JSON file for each part,
environment.json and results.md, eight in all.

The kernels' parts need torch and triton alone, and a C compiler, as Triton does; a Python package that the pipelines
need and that is missing is named, and the other parts go on. Run it in the repository's root.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from bench.gpu_suite import report
from bench.gpu_suite.cells import gather, load, retry, save
from bench.gpu_suite.environment import difference, environment, missing, results_folder
from bench.gpu_suite.workers import finish, work

# In the order in which a first run is most use when it is cut off.
PARTS = ("correctness", "attention", "linears", "small", "pipelines", "tuning")


def main(arguments: list[str] | None = None) -> int:
    """0 when every part asked for is finished, 1 when time was up or a part could not begin, 2 when refused."""
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU is at hand: bench.gpu_suite needs one (--device cpu --tiny tries its own code)", file=sys.stderr)
        return 2
    if options.device == "cpu" and not options.tiny:
        print("on a CPU the suite only tries its own code: add --tiny", file=sys.stderr)
        return 2
    folder = options.out or results_folder(options.device)
    if options.worker:
        return work(options, folder)

    folder.mkdir(parents=True, exist_ok=True)
    here, kept = environment(options.device, options.commit), folder / "environment.json"
    if kept.exists() and (other := difference(json.loads(kept.read_text()), here)):
        print(f"{folder} holds results of another {other}: give a new folder with --out", file=sys.stderr)
        return 2
    kept.write_text(json.dumps(here, indent=1) + "\n")
    deadline = time.monotonic() + 60 * options.minutes
    unfinished: dict[str, str] = {}
    for part in options.only or PARTS:
        if options.retry:
            retry(folder, part)
        if absent := missing(part):
            unfinished[part] = f"it needs {', '.join(absent)}, which this Python lacks"
        elif why := finish(options, folder, part, deadline):
            unfinished[part] = why
        save(folder / f"{part}.json", gather(folder, part), command=_command(part), environment=here)
        _write_page(folder, here, unfinished)
        print(report.summary(part, load(folder / f"{part}.json")), flush=True)
    for part, why in unfinished.items():
        print(f"{part} is not finished: {why}", flush=True)
    return 1 if unfinished else 0


def _write_page(folder: Path, here: dict[str, object], unfinished: dict[str, str]) -> None:
    results = {part: load(folder / f"{part}.json") for part in PARTS}
    (folder / "results.md").write_text(report.page(here, results, unfinished), encoding="utf-8")


def _command(part: str) -> str:
    return f"python -m bench.gpu_suite --only {part}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of the results (bench/results/<device>)")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no cell begins")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone, in this order")
    parser.add_argument("--retry", action="store_true", help="measure what failed or crashed again")
    parser.add_argument("--processes", type=int, default=8, help="that compile and check kernels side by side")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the suite itself")
    parser.add_argument("--commit", help="the commit that is measured, where there is no git checkout")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    # Of time.monotonic, which the processes of one machine share.
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help=argparse.SUPPRESS)
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
