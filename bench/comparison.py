"""Settings of Accel beside each other on the built-in model: seconds, likeness to the plain clips, prompt accuracy.

Every row makes the same clips with the same seeds. The rows take turns, so that a machine that slows down does so to
all of them. Shared by the benchmarks of the methods.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import accel
from accel.config import AccelConfig
from accel.measure.prompt_accuracy import prompt_accuracy
from accel.measure.quality import psnr, ssim
from accel.measure.timing import Timing, interleaved, machine, ratio
from accel.pipelines.demo import SIZES, defaults, weights_folder
from accel.pipelines.demo.scenes import Scene
from accel.pipelines.loading import weights_hash

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


@dataclass(frozen=True)
class Figure:
    """A figure of a method's report that its benchmark shows: its key there and here, heading and format."""

    reported: str
    key: str
    heading: str
    form: str


class Row:
    """One setting; each call makes the next clip and keeps its frames."""

    def __init__(self, pipe: Any, prompts: list[str], config: AccelConfig | None, steps: int) -> None:
        self.config = config
        self.steps = steps
        self.frames: list[np.ndarray] = []
        self.reports: list[dict[str, Any]] = []
        self._pipe = pipe
        self._prompts = prompts

    def __call__(self) -> None:
        index = len(self.frames)
        if self.config is None:
            self.frames.append(self._clip(index))
            return
        with accel.enable(self._pipe, self.config) as session:
            self.frames.append(self._clip(index))
        (report,) = session.summary().to_dict()["runs"][0]["methods"].values()
        self.reports.append(report)

    def _clip(self, index: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(index)
        prompt = self._prompts[index % len(self._prompts)]
        return self._pipe(prompt, num_inference_steps=self.steps, generator=generator, output_type="np").frames[0]


def table(found: dict[str, Row], times: dict[str, Timing], prompts: list[str], figure: Figure) -> list[dict[str, Any]]:
    """One line of figures for each row; quality is against the first row's clips."""
    first = next(iter(found))
    lines = []
    for name, row in found.items():
        pairs = list(zip(row.frames, found[first].frames, strict=True))
        shown = [report[figure.reported] for report in row.reports]
        method = None if row.config is None else row.config.methods[0]
        lines.append(
            {
                "setting": name,
                "config": None if method is None else {"method": method.method, **method.model_dump()},
                "steps": row.steps,
                "seconds": round(times[name].median, 2),
                "seconds_p20": round(times[name].p20, 2),
                "seconds_p80": round(times[name].p80, 2),
                "speed_up": round(ratio(times[first], times[name]), 2),
                "psnr_db": [round(psnr(a, b), 2) if name != first else None for a, b in pairs],
                "ssim": [round(ssim(a, b), 4) for a, b in pairs],
                "prompt_accuracy": {k: round(v, 3) for k, v in prompt_accuracy(row.frames, prompts).items()},
                figure.key: round(statistics.mean(shown), 3) if shown else None,
                "held_mb": round(max((report["held_bytes"] for report in row.reports), default=0) / 1e6, 1),
            }
        )
    return lines


def markdown(title: str, settings: dict[str, Any], lines: list[dict[str, Any]], figure: Figure) -> str:
    """The table for people."""
    head = [
        f"# {title}",
        "",
        "Printed by `" + settings["command"] + "`.",
        "",
        ", ".join(f"{key}: {value}" for key, value in settings.items() if key not in ("command", "machine", "prompts")),
        "",
        ", ".join(f"{key}: {value}" for key, value in settings["machine"].items() if value is not None),
        "",
        "PSNR and SSIM are against the plain clips of the first row: median (least) over the prompts.",
        "Prompt accuracy is the share of clips that show everything their prompt names.",
        "",
        f"| setting | seconds (median) | speed-up | PSNR dB | SSIM | prompt accuracy | {figure.heading} | held MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        decibels = [value for value in line["psnr_db"] if value is not None]
        quality = f"{statistics.median(decibels):.1f} ({min(decibels):.1f})" if decibels else "–"
        similar = f"{statistics.median(line['ssim']):.3f} ({min(line['ssim']):.3f})" if decibels else "–"
        shown = figure.form.format(line[figure.key]) if line[figure.key] is not None else "–"
        head.append(
            f"| {line['setting']} | {line['seconds']:.1f} | {line['speed_up']:.2f}× | {quality} | {similar} | "
            f"{line['prompt_accuracy']['all']:.2f} | {shown} | {line['held_mb']} |"
        )
    return "\n".join(head) + "\n"


def main(
    name: str,
    title: str,
    description: str | None,
    rows: Callable[[Any, list[str], int], dict[str, Row]],
    figure: Figure,
) -> None:
    """Reads the command line of the benchmark `bench.<name>`, measures its rows, prints and writes the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4, help=f"how many prompts, 1 to {len(SCENES)}")
    parser.add_argument("--size", default="standard", choices=SIZES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the table to bench/results")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    here = machine()  # now, because the checkout may have moved on when the last clip is done
    pipe = accel.load_pipeline("demo", size=options.size)
    pipe.set_progress_bar_config(disable=True)
    prompts = [scene.caption() for scene in SCENES[: options.prompts]]
    steps = defaults(options.size)["num_inference_steps"]
    pipe(prompts[0], num_inference_steps=2, output_type="latent")  # warm-up
    found = rows(pipe, prompts, steps)
    times = interleaved(found, warmup=0, repeats=len(prompts))
    lines = table(found, times, prompts, figure)
    settings = {
        "command": (
            f"python -m bench.{name} --prompts {options.prompts} --size {options.size} --threads {options.threads}"
        ),
        "model": f"demo {options.size}",
        "weights": weights_hash(weights_folder(options.size)),
        "dtype": "float32",
        "guidance": defaults(options.size)["guidance_scale"],
        "clip": "{height}×{width}×{num_frames}".format(**defaults(options.size)),
        "repeats": f"one clip per prompt and row, {len(prompts)} prompts, rows interleaved, warm-up of 2 steps",
        "prompts": prompts,
        "machine": here,
    }
    text = markdown(title, settings, lines, figure)
    print(text)
    if options.write:
        folder = Path(__file__).parent / "results" / "cpu"
        folder.mkdir(parents=True, exist_ok=True)
        stem = name if options.size == "standard" else f"{name}_{options.size}"
        (folder / f"{stem}.md").write_text(text)
        (folder / f"{stem}.json").write_text(
            json.dumps({**settings, "rows": lines}, indent=1, ensure_ascii=False) + "\n"
        )
