"""Settings of Accel, and rivals, beside each other on the built-in model: seconds, cost, likeness to the plain clips.

Every row makes the same clips with the same seeds. The rows take turns, so that a machine that slows down does so to
all of them. A finished clip is kept at once under outputs/, so that a benchmark that was killed goes on where it was.
Shared by the benchmarks of the methods.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import accel
from accel.measure.timing import machine
from accel.pipelines.demo import SIZES, WEIGHTS, defaults
from accel.pipelines.demo.scenes import Scene
from accel.pipelines.loading import weights_hash
from bench.clips import Maker, Row, Store, judged, key_of
from bench.tables import Figure, Line, lines_of, markdown

SCENES = (
    Scene("circle", "red", "left", "black"),
    Scene("square", "blue", "growing", "white", "striped"),
    Scene("ring", "yellow", "down", "navy"),
    Scene("triangle", "green", "right", "gray", "checkered"),
    Scene("circle", "purple", "shrinking", "brown"),
    Scene("square", "cyan", "up", "black", "striped"),
    Scene("ring", "red", "growing", "white"),
    Scene("triangle", "blue", "left", "brown", "plain"),
)
CALIBRATION = Scene("circle", "yellow", "right", "gray")
ROOT = Path(__file__).resolve().parents[1]

Rows = dict[str, Row]


def measure(found: dict[int, Rows], maker: Maker, prompts: list[str], store: Store) -> dict[int, dict[str, list]]:
    """The clips of every row, by steps of the group and name; the first row of a group is its reference."""
    clips: dict[int, dict[str, list]] = {steps: {name: [] for name in rows} for steps, rows in found.items()}
    for index, prompt in enumerate(prompts):
        for steps, rows in found.items():
            first, *others = rows
            start = index % len(others) if others else 0
            for name in [first, *others[start:], *others[:start]]:
                key = key_of(steps, rows[name], prompt, index)
                clip = store.find(key)
                if clip is None:
                    frames, clip = maker.make(rows[name], index)
                    if name == first:
                        store.keep_reference(steps, index, frames)
                    clip |= judged(frames, None if name == first else store.reference(steps, index), prompt)
                    store.add(key, clip)
                    print(f"{steps} steps, prompt {index}, {name}: {clip['seconds']:.1f} s", file=sys.stderr)
                clips[steps][name].append(clip)
    return clips


def chosen(rows: Rows, words: list[str] | None) -> Rows:
    """The first row, and the others whose name has one of the words; all without words."""
    if not words:
        return rows
    first = next(iter(rows))
    return {name: row for name, row in rows.items() if name == first or any(word in name for word in words)}


@dataclass(frozen=True)
class Benchmark:
    """What one call of a benchmark works on: its options, the model, what all clips share, and where they are kept."""

    name: str
    options: argparse.Namespace
    pipe: Any
    prompts: list[str]
    call: dict[str, Any]
    settings: dict[str, Any]
    folder: Path
    store: Store

    @property
    def steps(self) -> list[int]:
        """A table is made for each."""
        return self.options.steps or [defaults(self.options.size)["num_inference_steps"]]

    @classmethod
    def open(cls, name: str, description: str | None) -> Benchmark:
        """Reads the command line of the benchmark `bench.<name>` and loads the model."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--prompts", type=int, default=4, help=f"how many prompts, 1 to {len(SCENES)}")
        parser.add_argument("--steps", type=int, nargs="+", help="a table for each number (the model's own)")
        parser.add_argument("--size", default="standard", choices=SIZES)
        parser.add_argument("--frames", type=int, help="frames of a clip (the model's own)")
        parser.add_argument("--threads", type=int, default=1)
        parser.add_argument("--rows", nargs="+", metavar="WORD", help="only rows whose name has one of these words")
        parser.add_argument("--fresh", action="store_true", help="forget the clips of a benchmark that was cut short")
        parser.add_argument("--write", action="store_true", help="write the table to bench/results")
        options = parser.parse_args()
        if not 1 <= options.prompts <= len(SCENES):
            parser.error(f"--prompts: 1 to {len(SCENES)}")

        torch.set_num_threads(options.threads)
        here = machine()  # now, because the checkout may have moved on when the last clip is done
        pipe: Any = accel.load_pipeline("demo", size=options.size)
        pipe.set_progress_bar_config(disable=True)
        own = defaults(options.size)
        call = {"height": own["height"], "width": own["width"], "num_frames": options.frames or own["num_frames"]}
        settings = {
            "model": f"demo {options.size}",
            "weights": weights_hash(WEIGHTS),
            "dtype": "float32",
            "guidance": own["guidance_scale"],
            "clip": "{height}×{width}×{num_frames}".format(**call),
            "machine": here,
        }
        folder = _folder(name, settings, fresh=options.fresh)
        prompts = [scene.caption() for scene in SCENES[: options.prompts]]
        return cls(name, options, pipe, prompts, call, settings, folder, Store(folder))


def main(
    name: str,
    title: str,
    description: str | None,
    rows: Callable[[Any, int], Rows],
    figure: Figure | None,
    notes: Callable[[], list[str]] = list,
) -> None:
    """Reads the command line of the benchmark `bench.<name>`, measures its rows, prints and writes the table.

    `rows` gives the rows for a number of steps, the plain pipeline first; `notes` what else the table must say.
    """
    bench = Benchmark.open(name, description)
    tabulate(bench, title, {steps: rows(bench.pipe, steps) for steps in bench.steps}, figure, notes())


def tabulate(
    bench: Benchmark,
    title: str,
    rows: dict[int, Rows],
    figure: Figure | None,
    notes: list[str],
    more: Callable[[dict[int, list[Line]]], tuple[list[str], dict[str, Any]]] | None = None,
) -> None:
    """Measures rows, prints and writes the table; `more` gives, of its lines, text and data to stand behind it."""
    options, pipe, prompts, store = bench.options, bench.pipe, bench.prompts, bench.store
    if len(store):
        print(f"{len(store)} clips of this machine, code and model are known already", file=sys.stderr)
    found = {steps: chosen(each, options.rows) for steps, each in rows.items()}
    pipe(prompts[0], **bench.call, num_inference_steps=2, output_type="latent")  # warm-up
    clips = measure(found, Maker(pipe, prompts, bench.call, CALIBRATION.caption()), prompts, store)
    settings = {
        "command": f"python -m bench.{bench.name} {shlex.join(_kept(sys.argv[1:]))}".strip(),
        **bench.settings,
        "repeats": f"one clip per prompt and row, {len(prompts)} prompts, rows interleaved, warm-up of 2 steps",
        "prompts": prompts,
    }
    lines = {steps: lines_of(each, clips[steps], figure) for steps, each in found.items()}
    behind, data = more(lines) if more is not None else ([], {})
    text = markdown(title, settings, lines, figure, notes) + "".join(f"{line}\n" for line in behind)
    print(text)
    if options.write:
        folder = ROOT / "bench" / "results" / "cpu"
        folder.mkdir(parents=True, exist_ok=True)
        stem = bench.name if options.size == "standard" else f"{bench.name}_{options.size}"
        (folder / f"{stem}.md").write_text(text)
        everything = {**settings, "rows": [line for group in lines.values() for line in group], **data}
        (folder / f"{stem}.json").write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")


def _kept(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if argument not in ("--write", "--fresh")]


def _folder(name: str, settings: dict[str, Any], *, fresh: bool) -> Path:
    """Where the clips of a benchmark are kept: those of another machine, commit or model are elsewhere."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = ROOT / "outputs" / "bench" / name / digest
    if fresh and folder.exists():
        shutil.rmtree(folder)
    return folder
