"""Times every operation of the kernels at the sizes of real models, against what a user would have instead.

python -m bench.kernels [--sizes NAME ...] [--operations NAME ...] [--list] [--format json] [--write]

Each operation is first held against its reference form (in float64, or bit for bit where the format asks for it); of a
wrong one no speed-up is said. It is then timed in turn with its rivals: by the device's own clock on a GPU, by the
host's on a CPU. Tensors are random, so that no model is needed; torch and triton are enough. What would take too long
or too much memory is skipped with the number and the nearest size that works. Run it in the repository's root.
"""

from __future__ import annotations

import argparse
import difflib
import json
import shlex
import sys
from dataclasses import asdict

import torch

from accel.measure.ceilings import ceilings
from accel.measure.timing import machine
from bench.gpu_suite.environment import results_folder
from bench.gpu_suite.problems import DTYPES
from bench.kernels.cases import BLOCK, Place
from bench.kernels.measuring import Limits, Row, free_bytes, measure
from bench.kernels.page import listing, page, progress
from bench.kernels.sizes import SIZES
from bench.kernels.table import OPERATIONS

SCHEMA = 1


def main(arguments: list[str] | None = None) -> int:
    """0 when all that was asked for is measured or skipped with its reason, 1 when something failed or is wrong."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(given)
    if options.list:
        print(listing())
        return 0
    operations = _chosen(options.operations, parser)
    _require_possible(options, parser)
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = DTYPES[options.dtype or ("bfloat16" if options.device == "cuda" else "float32")]
    place = Place(options.device, dtype, options.density)
    best = ceilings(torch.device(options.device), dtype)
    limits = Limits(best, options.call_seconds, free_bytes(options.device), options.seconds, options.rounds)

    rows: list[Row] = []
    for size in options.sizes or (list(SIZES) if options.device == "cuda" else ["demo"]):
        for operation in operations:
            for row in measure(operation, size, place, limits):
                rows.append(row)
                print(progress(row), file=sys.stderr, flush=True)
    settings = {
        "command": " ".join(["python -m bench.kernels", *map(shlex.quote, given)]),
        "dtype": options.dtype or str(dtype).removeprefix("torch."),
        "density": place.density,
        "block_size": BLOCK,
        "ceilings": asdict(best),
        "machine": machine(options.device),
    }
    report = {"schema": SCHEMA, "kind": "bench kernels", **settings, "rows": rows}
    text = page(settings, rows)
    print(json.dumps(report, indent=1) if options.format == "json" else text.rstrip())
    if options.write:
        folder = results_folder(options.device)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kernels.md").write_text(text, encoding="utf-8")
        (folder / "kernels.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if any("failed" in row or row.get("correct") is False for row in rows) else 0


def _chosen(names: list[str] | None, parser: argparse.ArgumentParser) -> list[str]:
    """The operations of the table that names stand for: "int8.int8_linear", "int8_linear", or "int8" for all of it."""
    if names is None:
        return list(OPERATIONS)
    chosen: list[str] = []
    for name in names:
        found = [one for one in OPERATIONS if name in (one, one.partition(".")[0]) or one.endswith(f".{name}")]
        if not found:
            known = [part for one in OPERATIONS for part in (one, one.rpartition(".")[2])]
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; the nearest is {near[0]}" if near else "; --list names them"
            parser.error(f"the kernels have no operation {name}{hint}")
        chosen += [one for one in found if one not in chosen]
    return chosen


def _require_possible(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is at hand: --device cpu is what works here")
    if not 0 < options.density <= 1:
        parser.error(f"--density {options.density:g} is not above 0 and up to 1")
    for name in ("rounds", "threads", "seconds", "call_seconds"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} {value:g} is not above 0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", nargs="+", choices=SIZES, metavar="NAME", help="of --list; all on a GPU, demo on a CPU")
    add("--operations", nargs="+", metavar="NAME", help="an operation or a module of kernels/, of --list; all of them")
    add("--list", action="store_true", help="print the sizes and the operations, and measure nothing")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    add("--dtype", choices=DTYPES, help="of the tensors (bfloat16 on a GPU, float32 on a CPU)")
    add("--density", type=float, default=0.25, help="of sparse attention: the share of blocks that is kept (0.25)")
    add("--threads", type=int, help="of torch on a CPU")
    add("--rounds", type=int, help="of each row, after three calls of warm-up (as many as --seconds allows, 3 to 30)")
    add("--seconds", type=float, default=2.0, help="for the rounds of a row (2)")
    add("--call-seconds", type=float, default=10.0, help="that one call may take at best, or it is skipped (10)")
    add("--format", default="text", choices=["text", "json"])
    add("--write", action="store_true", help="write kernels.md and kernels.json to bench/results/<device>")
    return parser


if __name__ == "__main__":
    sys.exit(main())
