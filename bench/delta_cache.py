"""The delta cache on the built-in model, against the plain pipeline and against fewer steps in the same time.

python -m bench.delta_cache [--prompts 4] [--size standard] [--threads 1] [--write]

Every row makes the same clips with the same seeds. The rows take turns, so that a machine that slows down does so to
all of them. Below each setting stands the plain pipeline with so few steps that it makes as many block calls, rounded
up: what a cache has to beat.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

import accel
from accel.config import AccelConfig
from accel.measure.prompt_accuracy import prompt_accuracy
from accel.measure.quality import psnr, ssim
from accel.measure.timing import Timing, interleaved, machine, ratio
from accel.methods.delta import DeltaCacheConfig, DeltaSchedule
from accel.pipelines.demo import defaults, weights_folder
from accel.pipelines.demo.scenes import Scene
from accel.pipelines.loading import weights_hash
from accel.presets import PRESETS, preset

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
PUBLISHED = {"cache": {"method": "delta", "interval": 2, "cached_blocks": 0.75, "boundary": 0.4, "dense_steps": 0.0}}


class Row:
    """One setting; each call makes the next clip and keeps its frames."""

    def __init__(self, pipe: Any, prompts: list[str], config: AccelConfig | None, steps: int) -> None:
        self.config = config
        self.steps = steps
        self.frames: list[np.ndarray] = []
        self.reused: list[float] = []
        self.held = 0
        self._pipe = pipe
        self._prompts = prompts

    def __call__(self) -> None:
        index = len(self.frames)
        if self.config is None:
            self.frames.append(self._clip(index))
            return
        with accel.enable(self._pipe, self.config) as session:
            self.frames.append(self._clip(index))
        report = session.summary().to_dict()["runs"][0]["methods"]["delta"]
        self.reused.append(report["reused_fraction"])
        self.held = max(self.held, report["held_bytes"])

    def _clip(self, index: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(index)
        prompt = self._prompts[index % len(self._prompts)]
        return self._pipe(prompt, num_inference_steps=self.steps, generator=generator, output_type="np").frames[0]


def rows(pipe: Any, prompts: list[str], steps: int) -> dict[str, Row]:
    """The plain pipeline, each setting, and behind each the plain steps that make at least as many block calls."""
    found = {f"plain, {steps} steps": Row(pipe, prompts, None, steps)}
    settings: dict[str, AccelConfig] = {name: preset(name) for name in PRESETS}
    settings["as published"] = AccelConfig.from_dict(PUBLISHED)
    blocks = len(pipe.transformer.blocks)
    for name, config in settings.items():
        found[f"delta, {name}"] = Row(pipe, prompts, config, steps)
        plans = [DeltaSchedule(_delta(config), blocks, steps).plan(step) for step in range(steps)]
        calls = steps * blocks - sum(len(plan.blocks) for plan in plans if plan.reuse)
        fewer = math.ceil(calls / blocks)
        found.setdefault(f"plain, {fewer} steps", Row(pipe, prompts, None, fewer))
    return found


def _delta(config: AccelConfig) -> DeltaCacheConfig:
    (delta,) = config.cache
    assert isinstance(delta, DeltaCacheConfig)
    return delta


def table(found: dict[str, Row], times: dict[str, Timing], prompts: list[str]) -> list[dict[str, Any]]:
    """One line of figures for each row; quality is against the first row's clips."""
    first = next(iter(found))
    lines = []
    for name, row in found.items():
        pairs = list(zip(row.frames, found[first].frames, strict=True))
        lines.append(
            {
                "setting": name,
                "config": None if row.config is None else row.config.to_dict()["cache"][0],
                "steps": row.steps,
                "seconds": round(times[name].median, 2),
                "seconds_p20": round(times[name].p20, 2),
                "seconds_p80": round(times[name].p80, 2),
                "speed_up": round(ratio(times[first], times[name]), 2),
                "psnr_db": [round(psnr(a, b), 2) if name != first else None for a, b in pairs],
                "ssim": [round(ssim(a, b), 4) for a, b in pairs],
                "prompt_accuracy": {k: round(v, 3) for k, v in prompt_accuracy(row.frames, prompts).items()},
                "reused": round(statistics.mean(row.reused), 3) if row.reused else None,
                "held_mb": round(row.held / 1e6, 1),
            }
        )
    return lines


def markdown(settings: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    """The table for people."""
    head = [
        "# The delta cache on the built-in model",
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
        "| setting | seconds (median) | speed-up | PSNR dB | SSIM | prompt accuracy | block calls reused | held MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        decibels = [value for value in line["psnr_db"] if value is not None]
        quality = f"{statistics.median(decibels):.1f} ({min(decibels):.1f})" if decibels else "–"
        similar = f"{statistics.median(line['ssim']):.3f} ({min(line['ssim']):.3f})" if decibels else "–"
        reused = f"{line['reused']:.1%}" if line["reused"] is not None else "–"
        head.append(
            f"| {line['setting']} | {line['seconds']:.1f} | {line['speed_up']:.2f}× | {quality} | {similar} | "
            f"{line['prompt_accuracy']['all']:.2f} | {reused} | {line['held_mb']} |"
        )
    return "\n".join(head) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4, help=f"how many prompts, 1 to {len(SCENES)}")
    parser.add_argument("--size", default="standard", choices=("standard", "quick"))
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
    lines = table(found, times, prompts)
    settings = {
        "command": (
            f"python -m bench.delta_cache --prompts {options.prompts} --size {options.size} --threads {options.threads}"
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
    text = markdown(settings, lines)
    print(text)
    if options.write:
        folder = Path(__file__).parent / "results" / "cpu"
        folder.mkdir(parents=True, exist_ok=True)
        name = "delta_cache" if options.size == "standard" else f"delta_cache_{options.size}"
        (folder / f"{name}.md").write_text(text)
        (folder / f"{name}.json").write_text(
            json.dumps({**settings, "rows": lines}, indent=1, ensure_ascii=False) + "\n"
        )


if __name__ == "__main__":
    main()
