"""Measures a model on the 64 held-out scenes: does a clip show what its prompt asks for, and what does the
autoencoder alone lose?

python -m accel.pipelines.demo.training.evaluate --size standard [--folder FOLDER] [--write]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from torch import Tensor

from accel.measure.prompt_accuracy import detect, prompt_accuracy
from accel.measure.quality import psnr
from accel.measure.timing import machine
from accel.pipelines import demo
from accel.pipelines.demo.held_out import held_out
from accel.pipelines.demo.render import render
from accel.pipelines.demo.scenes import Scene
from accel.pipelines.loading import weights_hash
from accel.reporting.contact_sheet import comparison_sheet

ROWS_SHOWN = 12


def generate(pipe: WanPipeline, scenes: list[Scene], call: dict[str, Any], batch: int) -> list[np.ndarray]:
    """A clip (T, H, W, 3) in [0, 1] for each scene's canonical caption; clip n comes from seed n."""
    clips: list[np.ndarray] = []
    for first in range(0, len(scenes), batch):
        some = scenes[first : first + batch]
        begun = time.monotonic()
        seeds = [torch.Generator().manual_seed(first + index) for index in range(len(some))]
        result = pipe([scene.caption() for scene in some], generator=seeds, output_type="np", **call)
        clips.extend(result.frames)
        print(f"{len(clips)}/{len(scenes)} clips, {(time.monotonic() - begun) / len(some):.1f} s each", flush=True)
    return clips


@torch.no_grad()
def round_trip(pipe: WanPipeline, scenes: list[Scene], call: dict[str, Any]) -> dict[str, Any]:
    """What is left of rendered clips after the autoencoder: PSNR in dB and the detector's verdicts."""
    generator = torch.Generator().manual_seed(7)
    figures, clips = [], []
    for scene in scenes:
        clip = render([scene], call["num_frames"], call["height"], call["width"], generator)
        latents = pipe.vae.encode(clip.to(pipe.vae.device, pipe.vae.dtype)).latent_dist.mode()
        decoded = pipe.vae.decode(latents).sample.float().cpu()
        before, after = (_frames(video) for video in (clip, decoded))
        figures.append(psnr(after, before))
        clips.append(after)
    accuracy = prompt_accuracy(clips, [scene.caption() for scene in scenes])
    return {"psnr": float(np.median(figures)), "psnr_least": min(figures), "accuracy": accuracy}


def _frames(video: Tensor) -> Tensor:
    """(1, 3, T, H, W) in [-1, 1] as (T, H, W, 3) in [0, 1]."""
    return ((video[0] + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="the model; the built-in one when left out")
    parser.add_argument("--size", choices=demo.SIZES, default="standard", help="whose defaults are used")
    parser.add_argument("--scenes", type=int, default=64, help="how many of the held-out scenes, evenly spread")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, help="instead of the size's default")
    parser.add_argument("--guidance-scale", type=float, help="instead of the size's default")
    parser.add_argument("--text-length", type=int, help="instead of the size's default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/evaluation"), help="folder for figures and sheet")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = options.folder or demo.weights_folder(options.size)
    pipe = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    call = {name: value for name, value in demo.defaults(options.size).items() if name != "fps"}
    asked = {
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "max_sequence_length": options.text_length,
    }
    call |= {name: value for name, value in asked.items() if value is not None}
    scenes = list(held_out()[:: max(1, 64 // options.scenes)][: options.scenes])
    captions = [scene.caption() for scene in scenes]

    clips = generate(pipe, scenes, call, options.batch)
    report = {
        "machine": machine(device),
        "weights": weights_hash(folder),
        "size": options.size,
        "call": call,
        "scenes": len(scenes),
        "accuracy": prompt_accuracy(clips, captions),
        "round_trip": round_trip(pipe, scenes, call),
    }
    print(json.dumps(report, indent=2))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.size}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    shown = range(0, len(clips), max(1, len(clips) // ROWS_SHOWN))
    films = []
    for index in list(shown)[:ROWS_SHOWN]:
        found = detect(clips[index])
        verdict = f"{found.color} {found.shape}, {found.motion}, {found.background}"
        films.append((f"{captions[index]}  ->  {verdict}", (clips[index] * 255).round().astype("uint8")))
    comparison_sheet(films).save(options.out / f"{options.size}.png")


if __name__ == "__main__":
    main()
