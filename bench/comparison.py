"""Settings of Accel, and rivals, beside each other on the built-in model: what is common to the benchmarks of methods.

Every setting makes the same clips with the same seeds, by the core of `accel bench`: warmed up, in turn, each finished
clip kept at once under outputs/, so that a benchmark that was killed goes on where it was. One that is started several
times shares the work: each process takes prompts that no other is at, with all their rows, and prints the whole table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import accel
from accel.cli.job.claims import Claims
from accel.config import AccelConfig
from accel.errors import AccelError
from accel.measure.backend import backend
from accel.measure.cells import Cell, Place, Store
from accel.measure.judge import judge
from accel.measure.matrix import NotGivenBack, Work, check, measure, order
from accel.measure.one_run import timed_run
from accel.measure.timing import changes, machine
from accel.measure.trial import Setting
from accel.pipelines.demo import SIZES, WEIGHTS, defaults
from accel.pipelines.demo.scenes import Scene
from accel.pipelines.loading import weights_hash
from bench.sharing import claimed, side_by_side, turn
from bench.tables import Figure, Row, markdown, rows_of

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
ROOT = Path(__file__).resolve().parents[1]
# Steps of a run of each setting before its first measured one.
WARMUP = 2

Cells = Callable[[Setting], list[Cell]]


def setting(name: str, steps: int, methods: Mapping[str, Any] | AccelConfig | None = None) -> Setting:
    """The plain pipeline, or methods of Accel, with so many steps."""
    config = methods if isinstance(methods, AccelConfig) else AccelConfig.from_dict(dict(methods or {}))
    return Setting(name, config, steps)


def distinct(settings: Iterable[Setting]) -> list[Setting]:
    """The settings, each once: the first of those that are the same whatever their names."""
    found: dict[str, Setting] = {}
    for one in settings:
        found.setdefault(one.fingerprint, one)
    return list(found.values())


def nearest(settings: Mapping[int, Any], steps: int) -> Any:
    """Those for the nearest number of steps."""
    return settings[min(settings, key=lambda known: abs(known - steps))]


def chosen(settings: Sequence[Setting], words: Sequence[str] | None) -> list[Setting]:
    """The first, and the others whose name has one of the words; all without words."""
    first, *others = settings
    return [first, *(one for one in others if not words or any(word in one.name for word in words))]


@dataclass(frozen=True)
class Benchmark:
    """What one call of a benchmark works on: its options, the model, what all clips share, and where they are kept.

    `shown` are the finished runs of all its tables so far.
    """

    name: str
    options: argparse.Namespace
    pipe: Any
    prompts: list[str]
    call: dict[str, Any]
    settings: dict[str, Any]
    folder: Path
    shown: list[Cell] = field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        """A table is made for each."""
        return self.options.steps or [defaults(self.options.size)["num_inference_steps"]]

    @property
    def stem(self) -> str:
        """What the files in bench/results are called: by the size and the steps, where they are not the usual ones."""
        parts = [self.name] if self.options.size == "standard" else [self.name, self.options.size]
        if self.steps != [defaults(self.options.size)["num_inference_steps"]]:
            parts += [*(str(number) for number in self.steps), "steps"]
        return "_".join(parts)

    @property
    def about(self) -> dict[str, Any]:
        """What stands above a table, and in its data."""
        kept = [argument for argument in sys.argv[1:] if argument not in ("--write", "--fresh")]
        processes = side_by_side(self.shown)
        shared = f", {processes} processes side by side, each prompt's rows in one" if processes > 1 else ""
        return {
            "command": f"python -m bench.{self.name} {shlex.join(kept)}".strip(),
            **self.settings,
            "repeats": f"one clip per prompt and row, {len(self.prompts)} prompts, rows interleaved, "
            f"warm-up of {WARMUP} steps{shared}",
            "prompts": self.prompts,
        }

    @classmethod
    def open(cls, name: str, description: str | None, *, prompts: int = 4) -> Benchmark:
        """Reads the command line of the benchmark `bench.<name>` and loads the model."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--prompts", type=int, default=prompts, help=f"how many prompts, 1 to {len(SCENES)}")
        parser.add_argument("--steps", type=int, nargs="+", help="a table for each number (the model's own)")
        parser.add_argument("--size", default="standard", choices=SIZES)
        parser.add_argument("--frames", type=int, help="frames of a clip (the model's own)")
        parser.add_argument("--threads", type=int, default=1)
        parser.add_argument("--rows", nargs="+", metavar="WORD", help="only rows whose name has one of these words")
        parser.add_argument("--fresh", action="store_true", help="forget all clips and make them anew")
        parser.add_argument("--write", action="store_true", help="write the table to bench/results")
        options = parser.parse_args()
        if not 1 <= options.prompts <= len(SCENES):
            parser.error(f"--prompts: 1 to {len(SCENES)}")

        torch.set_num_threads(options.threads)
        # Now, because the checkout may have moved on when the last clip is done.
        here, changed = machine(), changes()
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
            "baseline_backend": backend(pipe),
            "machine": here,
            **({} if changed is None else {"uncommitted_changes": changed}),
        }
        folder = _folder(name, settings, fresh=options.fresh)
        texts = [scene.caption() for scene in SCENES[: options.prompts]]
        return cls(name, options, pipe, texts, call, settings, folder)

    def measured(self, settings: Sequence[Setting]) -> Cells:
        """The finished runs of settings, the first of which the others are compared with, after making those missing.

        Raises:
            SystemExit: the pipeline refuses a setting of Accel, or one changed the model for good.
        """
        baseline = settings[0]
        try:
            check(self.pipe, settings)
        except AccelError as error:
            raise SystemExit(str(error)) from error
        # Fewer steps of one table may be the baseline of another, whose clips are compared with themselves.
        identity = {**self.settings, "baseline": baseline.to_dict()}
        store = Store.open(self.folder / baseline.fingerprint, identity)
        store.write_header(identity, {**self.about, "settings": {one.name: one.to_dict() for one in settings}})
        places = [Place(prompt, index) for index, prompt in enumerate(self.prompts)]
        wanted = list(order(settings, baseline, places))

        def finished() -> list[Cell]:
            return [cell for one, place in wanted if (cell := store.find(one, place)) is not None]

        if len(store):
            print(f"{len(store)} clips of this machine, code and model are known already", file=sys.stderr)

        def on_cell(one: Setting, place: Place, cell: Cell) -> None:
            said = f"failed: {cell.error}" if cell.error else f"{cell.figures['seconds']['total']:.1f} s"
            print(f"{len(finished())} of {len(wanted)}: prompt {place.seed}, {one.name}: {said}", file=sys.stderr)

        try:
            with closing(Claims(self.folder)) as claims:
                # What is left by others at first may be done by then, or be left for good.
                for waits in (False, True):
                    measure(
                        work(self.pipe, self.call, baseline.steps),
                        settings,
                        baseline,
                        places,
                        store,
                        warmup=WARMUP,
                        keep=lambda place: False,
                        on_cell=on_cell,
                        turn=partial(turn, claims, store, waits=waits),
                    )
        except NotGivenBack as error:
            raise SystemExit(str(error)) from error
        self.shown.extend(finished())
        return lambda one: [cell for place in places if (cell := store.find(one, place)) is not None]

    def write(self, text: str, data: dict[str, Any], pictures: Mapping[str, bytes] | None = None) -> None:
        """Prints the table and, where `--write` is given, keeps it with its data and pictures (by their endings)."""
        print(text)
        if not self.options.write:
            return
        folder = ROOT / "bench" / "results" / "cpu"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.stem}.md").write_text(text)
        (folder / f"{self.stem}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        for ending, picture in (pictures or {}).items():
            (folder / f"{self.stem}.{ending}").write_bytes(picture)


def work(pipe: Any, call: Mapping[str, Any], steps: int | None) -> Work:
    """Clips of the built-in model; `call` holds what all calls share, and the seed of a prompt is its place."""

    def arguments(place: Place, steps: int | None) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(place.seed)
        own = {"prompt": place.prompt, "generator": generator, "output_type": "np"}
        return {**call, **own, **({} if steps is None else {"num_inference_steps": steps})}

    def judged(frames: np.ndarray, reference: np.ndarray | None, place: Place) -> dict[str, Any]:
        return judge(frames, reference, place.prompt)

    return Work(pipe, steps, arguments, lambda given: timed_run(pipe, given), lambda out: out.frames[0], judged)


def main(
    name: str,
    title: str,
    description: str | None,
    settings: Callable[[Any, int], list[Setting]],
    figure: Figure | None,
    notes: Sequence[str] = (),
) -> None:
    """Reads the command line of the benchmark `bench.<name>`, measures its settings, prints and writes the table.

    `settings` gives them for a number of steps, the plain pipeline first; `notes` are what else the table must say.
    """
    bench = Benchmark.open(name, description)
    tabulate(bench, title, {steps: settings(bench.pipe, steps) for steps in bench.steps}, figure, notes)


def tabulate(
    bench: Benchmark,
    title: str,
    groups: Mapping[int, Sequence[Setting]],
    figure: Figure | None,
    notes: Sequence[str],
    more: Callable[[dict[int, list[Row]]], tuple[list[str], dict[str, Any]]] | None = None,
) -> None:
    """Measures settings, prints and writes the table; `more` gives, of its rows, text and data to stand behind it."""
    rows = {}
    for steps, all_settings in groups.items():
        settings = chosen(all_settings, bench.options.rows)
        rows[steps] = rows_of(settings, bench.measured(settings), figure)
    behind, data = more(rows) if more is not None else ([], {})
    text = markdown(title, bench.about, rows, figure, notes) + "".join(f"{line}\n" for line in behind)
    bench.write(text, {**bench.about, "rows": [row for group in rows.values() for row in group], **data})


def _folder(name: str, settings: dict[str, Any], *, fresh: bool) -> Path:
    """Where the clips of a benchmark are kept: those of another machine, code or model are elsewhere."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = ROOT / "outputs" / "bench" / name / digest
    folder.mkdir(parents=True, exist_ok=True)
    if fresh:
        _forget(folder)
    return folder


def _forget(folder: Path) -> None:
    """Takes away all clips of a folder, unless another process is at some of them."""
    stores = [each for each in folder.iterdir() if each.is_dir()]
    places = [Place(scene.caption(), index) for index, scene in enumerate(SCENES)]
    with closing(Claims(folder)) as claims, ExitStack() as held:
        for each in stores:
            if not all(held.enter_context(claims.claim(claimed(each.name, place))) for place in places):
                raise SystemExit(f"another process makes clips of this benchmark: leave --fresh out to share {folder}")
        for each in stores:
            shutil.rmtree(each)
