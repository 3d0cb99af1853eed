"""Checks every kernel on a GPU, times it against its rivals, runs the pipelines, and writes the results.

python -m bench.gpu_suite [--out FOLDER] [--minutes N] [--only PART ...] [--retry]

Parts: correctness, attention (against the dense backends and FlexAttention), linears (INT8, NVFP4 and mixed precision
against 16 bits), small (the other operations, most of which move memory), pipelines (random transformers of Wan 2.1,
FLUX and HunyuanVideo at published sizes, the built-in model, the recorder), tuning (tiles, with what the compiler
reports). A call takes less than eight minutes, since no cell begins after --minutes; each finished cell is saved at
once, and the same command again goes on where the last one was stopped and measures nothing twice. A cell that fails
is recorded with its error; one that takes the device down or hangs is left behind by a new process. --retry measures
those again. A folder holds the results of one device and one state of the code: a JSON file for each part,
environment.json and results.md, eight in all.

No speed-up is told before the part correctness is finished and green in the same folder, and none without its spread;
each operation of the part small is checked beside its own figures.

The kernels' parts need torch and triton alone, and a C compiler, as Triton does. The pipelines also need diffusers,
transformers, accelerate, safetensors, imageio, pydantic, pyyaml, ftfy and pytorch-msssim, with what these need; what is
missing, or of too old a version, is named in one line, and the other parts go on. To a machine without a network, carry
their wheels in a folder. Where there is one (with the other machine's Python and platform):

    pip download --only-binary :all: --no-deps --python-version 3.12 --platform manylinux2014_x86_64 -d wheels \\
        diffusers importlib-metadata zipp pydantic pydantic-core annotated-types typing-inspection ftfy wcwidth \\
        pytorch-msssim
    pip install --no-index --no-deps --find-links wheels diffusers importlib-metadata ...    # the same names, there

pydantic wants one version of pydantic-core, `pydantic-core==...`, which the line tells. Run the suite in the
repository's root.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from bench.gpu_suite import report
from bench.gpu_suite.cells import about, gather, load, retry, save, whole
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
    whole(kept, json.dumps(here, indent=1) + "\n")
    deadline = time.monotonic() + 60 * options.minutes
    unfinished: dict[str, str] = {}
    for part in options.only or PARTS:
        if options.retry:
            retry(folder, part)
        if absent := missing(part):
            unfinished[part] = f"it needs {', '.join(absent)}, which this Python lacks (see --help)"
        elif why := finish(options, folder, part, deadline):
            unfinished[part] = why
        told = {"command": _command(part), "environment": here, "finished": part not in unfinished}
        save(folder / f"{part}.json", gather(folder, part), **told)
        silent = _silent(folder)
        _write_page(folder, here, unfinished, silent)
        print(report.summary(part, load(folder / f"{part}.json"), silent.get(part)), flush=True)
    for part, why in unfinished.items():
        print(f"{part} is not finished: {why}", flush=True)
    return 1 if unfinished else 0


def _silent(folder: Path) -> dict[str, str]:
    """Why no speed-up of a part is told, by part; a part's file says so too, before the cells with the raw figures."""
    correctness = folder / "correctness.json"
    checked, finished = load(correctness), bool(about(correctness).get("finished"))
    silent = {}
    for part in PARTS:
        why, path = report.withheld(part, checked, finished=finished), folder / f"{part}.json"
        if why is not None:
            silent[part] = why
        if path.exists():
            save(path, load(path), **{**about(path), "speed_ups_withheld": why})
    return silent


def _write_page(folder: Path, here: dict[str, object], unfinished: dict[str, str], silent: dict[str, str]) -> None:
    results = {part: load(folder / f"{part}.json") for part in PARTS}
    whole(folder / "results.md", report.page(here, results, unfinished, silent))


def _command(part: str) -> str:
    return f"python -m bench.gpu_suite --only {part}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of the results (bench/results/<device>)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=7.0,
        help="of this call, all its parts together, after which no cell begins; the last has 40 seconds more (7)",
    )
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
