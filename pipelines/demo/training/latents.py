"""Renders training clips and encodes them once, so that the transformer's training does not have to.

A shard is a file of clips of one size, the same for the same number; processes share the numbers out.
"""

import argparse
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from accel.pipelines.demo.held_out import training_scene
from accel.pipelines.demo.render import render
from accel.pipelines.demo.scenes import Scene
from accel.pipelines.demo.training.loop import Workers

SHARD = 64


@dataclass(frozen=True)
class ClipSize:
    """Pixels and frames of a clip, written like 128x128x65 (height, width, frames)."""

    height: int
    width: int
    frames: int

    @classmethod
    def parse(cls, text: str) -> "ClipSize":
        height, width, frames = (int(part) for part in text.split("x"))
        return cls(height, width, frames)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.frames}"

    @property
    def tokens(self) -> int:
        """Tokens of the transformer: cells of 8 x 8 pixels and 2 frames, in patches of 2 x 2."""
        return ((self.frames - 1) // 2 + 1) * (self.height // 16) * (self.width // 16)


@torch.no_grad()
def encode(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) in [-1, 1] as latents (B, C, t, h, w), normalized as the pipeline expects them."""
    latents = vae.encode(clips.to(vae.dtype)).latent_dist.mode().float()
    config: Any = vae.config
    shape = (1, -1, 1, 1, 1)
    mean = latents.new_tensor(config.latents_mean).view(shape)
    deviation = latents.new_tensor(config.latents_std).view(shape)
    return (latents - mean) / deviation


def shards(folder: Path, size: ClipSize) -> list[Path]:
    """The shards of one size that are there, in order."""
    return sorted((folder / str(size)).glob("*.pt"))


def load(folder: Path, size: ClipSize, device: torch.device) -> tuple[Tensor, list[Scene]]:
    """All clips of one size: latents (N, C, t, h, w), float16, and the scene of each."""
    latents: list[Tensor] = []
    scenes: list[Scene] = []
    for path in shards(folder, size):
        shard = torch.load(path, map_location=device, weights_only=True)
        latents.append(shard["latents"])
        scenes.extend(Scene(*words) for words in shard["scenes"])
    if not latents:
        raise SystemExit(f"no latents of {size} in {folder}; make some with accel.pipelines.demo.training.latents")
    return torch.cat(latents), scenes


def _missing(folder: Path, size: ClipSize, count: int, workers: Workers) -> Iterator[tuple[int, Path]]:
    for number in range(workers.rank, -(-count // SHARD), workers.world):
        path = folder / str(size) / f"{number:05d}.pt"
        if not path.exists():
            yield number, path


def make_shard(vae: AutoencoderKLWan, size: ClipSize, number: int, seed: int, path: Path) -> None:
    """Renders, encodes and writes one shard."""
    rng = random.Random(f"{seed}/{size}/{number}")
    device = next(vae.parameters()).device
    generator = torch.Generator(device).manual_seed(rng.getrandbits(62))
    scenes = [training_scene(rng) for _ in range(SHARD)]
    at_once = max(1, min(SHARD, (2**22 if device.type == "cpu" else 2**26) // (size.height * size.width * size.frames)))
    parts = []
    for first in range(0, SHARD, at_once):
        clips = render(scenes[first : first + at_once], size.frames, size.height, size.width, generator)
        with torch.autocast(device.type, torch.bfloat16):
            parts.append(encode(vae, clips).half())
    words = [[scene.shape, scene.color, scene.motion, scene.background, scene.texture] for scene in scenes]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    torch.save({"latents": torch.cat(parts).cpu(), "scenes": words}, beside)
    os.replace(beside, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", metavar="HxWxT:COUNT", help="clip sizes and how many clips of each")
    parser.add_argument("--work", type=Path, default=Path("outputs/training"), help="folder with vae/; gets latents/")
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()

    workers = Workers.join()
    vae = AutoencoderKLWan.from_pretrained(options.work / "vae", torch_dtype=torch.float32).eval().to(workers.device)
    for pool in options.pools:
        text, count = pool.split(":")
        size, begun, made = ClipSize.parse(text), time.monotonic(), 0
        for number, path in _missing(options.work / "latents", size, int(count), workers):
            make_shard(vae, size, number, options.seed, path)
            made += SHARD
        if workers.rank == 0 and made:
            print(f"{size}: {made} clips, {(time.monotonic() - begun) / made:.3f} s a clip", flush=True)


if __name__ == "__main__":
    main()
