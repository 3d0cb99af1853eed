"""Trains the built-in model's autoencoder, an AutoencoderKLWan that packs 8 x 8 pixels of 2 frames into one cell.

Most steps see small windows around objects, because the rest of a clip is background; every few steps see whole
frames, because the middle of the network attends over all cells of a frame. Windows are up to 65 frames long: behind
the reach of the causal convolutions from the first frame, which is padded, cells look different from those before, and
an autoencoder that has only seen 9 frames loses 6 dB there.
"""

import argparse
import random
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, unpatchify
from torch import Tensor, nn

from accel.measure.quality import psnr
from accel.pipelines.demo.held_out import held_out, training_scene
from accel.pipelines.demo.render import render
from accel.pipelines.demo.training.loop import Trainer, Workers, run_steps
from accel.pipelines.demo.training.muon import Muon

PATCH = 4
SIDES = (64, 96, 128, 128, 128, 128)
LENGTHS = (9, 9, 17, 17, 33, 65)
#: Frames and side of the windows; as many of them to a step as have about as many pixels as `batch` of the first.
WINDOWS = ((9, 48), (17, 40), (33, 32), (65, 32))
WHOLE_EVERY = 5
SQUARED_ERROR, KL = 2.0, 5e-5


def build(channels: int) -> AutoencoderKLWan:
    """A fresh autoencoder with that many latent channels: 2 frames and 8 x 8 pixels to a cell."""
    vae = AutoencoderKLWan(
        base_dim=32,
        z_dim=channels,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        patch_size=PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
        scale_factor_temporal=2,
        scale_factor_spatial=8,
    )
    with torch.no_grad():
        # Nearly deterministic at first: noise of variance 1 would drown the mean for hundreds of steps.
        vae.quant_conv.weight[channels:].mul_(0.1)
        vae.quant_conv.bias[channels:].fill_(-6.0)
    return vae


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """What `vae.decode` computes, without its clamp to [-1, 1], beyond which there would be no gradient."""
    vae.clear_cache()
    hidden, frames = vae.post_quant_conv(latents), []
    for index in range(latents.shape[2]):
        vae._conv_idx = [0]
        frame = hidden[:, :, index : index + 1]
        frames.append(vae.decoder(frame, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0))
    vae.clear_cache()
    return unpatchify(torch.cat(frames, 2), patch_size=PATCH)


def training_clips(rng: random.Random, generator: torch.Generator, step: int, batch: int) -> Tensor:
    """Windows of some clips, or at every `WHOLE_EVERY`th step whole frames, with about as many pixels."""
    if step % WHOLE_EVERY == 0:
        scenes = [training_scene(rng) for _ in range(max(1, batch // 8))]
        return render(scenes, rng.choice(LENGTHS), 128, 128, generator, window=(9, 128, 128))
    frames, side = rng.choice(WINDOWS)
    length = rng.choice([length for length in LENGTHS if length >= frames])
    first_frames, first_side = WINDOWS[0]
    count = max(1, round(batch * first_frames * first_side**2 / (frames * side**2)))
    pixels, scenes = rng.choice(SIDES), [training_scene(rng) for _ in range(count)]
    return render(scenes, length, pixels, pixels, generator, window=(frames, side, side))


def loss(vae: AutoencoderKLWan, clips: Tensor) -> tuple[Tensor, dict[str, float]]:
    """L1 and squared error of the reconstruction, and a little KL divergence from a standard normal."""
    mean, log_variance = vae._encode(clips).float().chunk(2, 1)
    log_variance = log_variance.clamp(-20, 10)
    latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
    error = decode(vae, latents).float() - clips
    squared = error.square().mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    total = error.abs().mean() + SQUARED_ERROR * squared + KL * divergence
    return total, {"mse": squared.item(), "kl": divergence.item()}


def optimizers(vae: AutoencoderKLWan) -> list[torch.optim.Optimizer]:
    """Muon for the inner convolutions, AdamW for the first and last ones and for all vectors."""

    def inner(name: str, weight: nn.Parameter) -> bool:
        return (
            weight.ndim >= 4 and weight[0].numel() > 1 and not any(p in name for p in ("gamma", "conv_in", "conv_out"))
        )

    named = list(vae.named_parameters())
    return [
        Muon([weight for name, weight in named if inner(name, weight)], lr=0.02),
        torch.optim.AdamW(
            [weight for name, weight in named if not inner(name, weight)], lr=3e-3, betas=(0.9, 0.98), weight_decay=1e-3
        ),
    ]


@torch.no_grad()
def round_trip(vae: AutoencoderKLWan, num_frames: int, count: int = 8, seed: int = 7) -> float:
    """Mean PSNR in dB of held-out clips of 128 x 128 pixels after encoding and decoding."""
    device = next(vae.parameters()).device
    clips = render(held_out()[:: 64 // count], num_frames, 128, 128, torch.Generator(device).manual_seed(seed))
    figures = []
    for clip in clips.split(1):
        decoded = vae.decode(vae.encode(clip.to(vae.dtype)).latent_dist.mode()).sample.float()
        decoded, clip = (((video[0] + 1) / 2).permute(1, 2, 3, 0) for video in (decoded, clip))
        figures.append(psnr(decoded, clip))
    return sum(figures) / len(figures)


@torch.no_grad()
def set_latent_statistics(vae: AutoencoderKLWan, seed: int = 11) -> None:
    """Measures mean and deviation of each latent channel on training clips; the pipeline normalizes with them."""
    device = next(vae.parameters()).device
    rng, generator = random.Random(seed), torch.Generator(device).manual_seed(seed)
    parts = []
    for frames in (9, 17, 65):
        for _ in range(8):
            clips = render([training_scene(rng) for _ in range(max(1, 32 // frames))], frames, 128, 128, generator)
            parts.append(vae.encode(clips).latent_dist.mode().transpose(0, 1).flatten(1))
    values = torch.cat(parts, 1)
    vae.register_to_config(latents_mean=values.mean(1).tolist(), latents_std=values.std(1).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/training"), help="folder of checkpoints")
    parser.add_argument("--steps", type=int, default=7000, help="steps in all; may change until 70 %% of it")
    parser.add_argument("--batch", type=int, default=8, help="windows a step and process")
    parser.add_argument("--channels", type=int, default=16, help="latent channels")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop, to go on later, after that long")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    workers = Workers.join()
    torch.manual_seed(options.seed)
    vae = build(options.channels)
    nn.Module.to(vae, workers.device)
    trainer = Trainer(vae, optimizers(vae), 0.995, options.work / "autoencoder.pt", workers)

    def step(number: int) -> dict[str, float]:
        rng, generator = workers.randomness(options.seed, number)
        torch.manual_seed(rng.getrandbits(62))
        clips = training_clips(rng, generator, number, options.batch)
        with torch.autocast(workers.device.type, torch.bfloat16):
            total, figures = loss(vae, clips)
        trainer.update(total, number, options.steps)
        return figures

    finished = run_steps(
        workers, first=trainer.first, steps=options.steps, minutes=options.minutes, step=step, save=trainer.save
    )
    if workers.rank == 0:
        trainer.average.swap()
        vae.eval()
        set_latent_statistics(vae)
        for frames in (9, 65):
            print(f"held-out round trip at 128x128x{frames}: {round_trip(vae, frames):.2f} dB", flush=True)
        if finished:
            nn.Module.to(vae, torch.bfloat16)
            vae.save_pretrained(options.work / "vae")


if __name__ == "__main__":
    main()
