"""Measures a model on the 64 held-out scenes: does a clip show what its prompt asks for, and what does the
autoencoder alone lose?

python -m accel.pipelines.demo.training.evaluate --size standard [--folder FOLDER]

It goes on where it was stopped, and `torchrun --nproc-per-node 2 -m ...` shares the clips out.
"""

import argparse
import json
import os
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
from accel.pipelines.demo.training.loop import Workers
from accel.pipelines.loading import weights_hash
from accel.reporting.contact_sheet import comparison_sheet

ROWS_SHOWN = 12


def generate(
    pipe: WanPipeline, scenes: dict[int, Scene], call: dict[str, Any], batch: int, folder: Path, workers: Workers
) -> list[np.ndarray]:
    """A clip (T, H, W, 3) of uint8 for each scene's canonical caption, in order; the scene's number is its seed.

    Each clip is a file of the folder, and one that is there is not made again. Processes share the numbers out, and
    each gets all clips.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in scenes if not _path(folder, number).exists()]
    workers.wait()  # so that all see the same ones missing
    mine = missing[workers.rank :: workers.world]
    for first in range(0, len(mine), batch):
        some = mine[first : first + batch]
        begun = time.monotonic()
        seeds = [torch.Generator().manual_seed(number) for number in some]
        result = pipe([scenes[number].caption() for number in some], generator=seeds, output_type="np", **call)
        for number, frames in zip(some, result.frames, strict=True):
            beside = folder / f"{number}.part.npy"
            np.save(beside, (frames * 255).round().astype("uint8"))
            os.replace(beside, _path(folder, number))
        done = f"{min(first + batch, len(mine))}/{len(mine)} clips"
        print(f"process {workers.rank}: {done}, {(time.monotonic() - begun) / len(some):.1f} s each", flush=True)
    workers.wait()
    return [np.load(_path(folder, number)) for number in scenes]


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:02d}.npy"


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
    workers = Workers.join()
    folder = options.folder or demo.WEIGHTS
    pipe = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(workers.device)
    pipe.set_progress_bar_config(disable=True)
    call = {name: value for name, value in demo.defaults(options.size).items() if name != "fps"}
    asked = {
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "max_sequence_length": options.text_length,
    }
    call |= {name: value for name, value in asked.items() if value is not None}
    every = held_out()
    numbers = range(0, len(every), max(1, len(every) // options.scenes))
    scenes = {number: every[number] for number in list(numbers)[: options.scenes]}
    weights = weights_hash(folder)
    kept = options.out / "clips" / "-".join([weights, *map(str, call.values())])
    clips = generate(pipe, scenes, call, options.batch, kept, workers)
    if workers.rank == 0:
        about = {"machine": machine(workers.device.type), "weights": weights, "size": options.size, "call": call}
        report(pipe, scenes, clips, about, options.out)
    workers.wait()


def report(
    pipe: WanPipeline, scenes: dict[int, Scene], clips: list[np.ndarray], about: dict[str, Any], out: Path
) -> None:
    """Prints and writes the figures, and writes some of the clips with their verdicts as a contact sheet."""
    captions = [scene.caption() for scene in scenes.values()]
    figures = about | {
        "scenes": len(scenes),
        "accuracy": prompt_accuracy([clip / np.float32(255) for clip in clips], captions),
        "round_trip": round_trip(pipe, list(scenes.values()), about["call"]),
    }
    text = json.dumps(figures, indent=2) + "\n"
    print(text, end="", flush=True)
    (out / f"{about['size']}.json").write_text(text, encoding="utf-8")
    films = []
    for index in list(range(0, len(clips), max(1, len(clips) // ROWS_SHOWN)))[:ROWS_SHOWN]:
        found = detect(clips[index] / np.float32(255))
        verdict = f"{found.color} {found.shape}, {found.motion}, {found.background}"
        films.append((f"{captions[index]}  ->  {verdict}", clips[index]))
    comparison_sheet(films).save(out / f"{about['size']}.png")


if __name__ == "__main__":
    main()
