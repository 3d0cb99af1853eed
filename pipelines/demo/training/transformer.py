"""Trains the built-in model's transformer and text encoder together, on latents made beforehand.

Flow matching (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003): between a clip x at
sigma 0 and noise n at sigma 1 on a straight line, the network learns the velocity n - x. Batches are of one
clip size each and of about as many tokens whatever the size, so that short clips, which are cheap, come in
large numbers.
"""

import argparse
import random
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from accel.pipelines.demo.scenes import Scene
from accel.pipelines.demo.training import attention, latents
from accel.pipelines.demo.training.loop import Trainer, Workers, run_steps
from accel.pipelines.demo.training.muon import Muon
from accel.pipelines.demo.training.text import (
    CAPTION_LENGTH,
    TEXT_WIDTH,
    build_text_encoder,
    build_tokenizer,
    embed,
    training_caption,
)

TEXT_LENGTHS = (24, 64, 226, 512)
#: Share of samples whose sigma is uniform before the shift: a logit-normal alone hardly reaches 1, where every
#: generation begins.
UNIFORM_SHARE = 0.2


def build(channels: int) -> WanTransformer3DModel:
    """A fresh transformer, 8 layers of width 256: all its widths are multiples of 128, as kernels want them."""
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=channels,
        out_channels=channels,
        text_dim=TEXT_WIDTH,
        freq_dim=256,
        ffn_dim=768,
        num_layers=8,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=256,
    )
    with torch.no_grad():
        # The first output is zero and time counts for little at first; gates start half open.
        model.proj_out.weight.zero_()
        model.proj_out.bias.zero_()
        model.condition_embedder.time_proj.weight.mul_(0.2)
        model.condition_embedder.time_proj.bias.zero_()
        for block in model.blocks:
            block.scale_shift_table.zero_()
            block.scale_shift_table[:, [2, 5]] = 0.5
    return model


def sample_sigmas(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels (count,) in (0, 1): logit-normal, a fifth uniform, then shifted as the scheduler does."""
    device = generator.device
    normal = torch.randn(count, generator=generator, device=device).sigmoid()
    even, which = torch.rand(2, count, generator=generator, device=device)
    sigma = torch.where(which < UNIFORM_SHARE, even, normal)
    return shift * sigma / (1 + (shift - 1) * sigma)


class Trainee(nn.Module):
    """Text encoder and transformer as one module, and the loss of a batch."""

    def __init__(self, channels: int, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.text_encoder: UMT5EncoderModel = build_text_encoder(len(tokenizer))
        self.transformer = build(channels)
        self.tokenizer = tokenizer
        self.text_length = attention.install(self.transformer)

    def loss(self, clips: Tensor, captions: list[str], lengths: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the velocity for each sample, (B,).

        Args:
            clips: normalized latents (B, C, t, h, w), float32; `noise` likewise.
            captions: B texts.
            lengths: (B,), the number of text positions that each sample shall seem to have.
            sigmas: (B,) in (0, 1).
        """
        text = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=CAPTION_LENGTH, return_tensors="pt"
        ).to(clips.device)
        self.text_length.set(text.attention_mask, lengths)
        sigma = sigmas.view(-1, 1, 1, 1, 1)
        with torch.autocast(clips.device.type, torch.bfloat16):
            embeddings = embed(self.text_encoder, text.input_ids, text.attention_mask)
            noisy = (1 - sigma) * clips + sigma * noise
            velocity = self.transformer(noisy, sigmas * 1000, embeddings, return_dict=False)[0]
        return (velocity.float() - (noise - clips)).square().flatten(1).mean(1)


def optimizers(model: Trainee, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside of blocks, AdamW for embeddings, vectors and the first and last layers."""

    def inner(name: str, weight: nn.Parameter) -> bool:
        return weight.ndim == 2 and "block" in name and "scale_shift" not in name and "relative" not in name

    named = list(model.named_parameters())
    return [
        Muon([w for n, w in named if inner(n, w)], lr=0.01 * rate, weight_decay=0.02),
        torch.optim.AdamW(
            [w for n, w in named if not inner(n, w)], lr=2e-3 * rate, betas=(0.9, 0.98), weight_decay=0.01
        ),
    ]


class Pools:
    """The encoded clips, by size, and which size each step takes."""

    def __init__(self, folder: Path, pools: list[str], device: torch.device) -> None:
        self.sizes, self.shares, self.shifts, self.clips = [], [], [], []
        for pool in pools:
            text, share, shift = pool.split(":")
            self.sizes.append(latents.ClipSize.parse(text))
            self.shares.append(float(share))
            self.shifts.append(float(shift))
            self.clips.append(latents.load(folder, self.sizes[-1], device))

    def draw(self, seed: int, step: int) -> int:
        """The pool of a step, the same on every process, so that none waits for another."""
        return random.Random(f"{seed}/{step}").choices(range(len(self.sizes)), self.shares)[0]

    def batch(self, pool: int, tokens: int, rng: random.Random) -> tuple[Tensor, list[Scene], float]:
        """Clips of one pool with about that many tokens, their scenes, and the pool's shift of sigma."""
        clips, scenes = self.clips[pool]
        count = max(1, round(tokens / self.sizes[pool].tokens))
        chosen = [rng.randrange(len(scenes)) for _ in range(count)]
        return clips[chosen].float(), [scenes[index] for index in chosen], self.shifts[pool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "pools", nargs="+", metavar="HxWxT:SHARE:SHIFT", help="clip sizes, their share of the steps, shift of sigma"
    )
    parser.add_argument("--name", required=True, help="of this stage: its checkpoint is <work>/<name>.pt")
    parser.add_argument("--init", help="name of an earlier stage, whose averaged weights this one begins with")
    parser.add_argument("--work", type=Path, default=Path("outputs/training"), help="folder with vae/ and latents/")
    parser.add_argument("--steps", type=int, required=True, help="steps in all; may change until 70 %% of it")
    parser.add_argument("--tokens", type=int, default=4224, help="tokens a step and process")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on all learning rates")
    parser.add_argument("--average", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop, to go on later, after that long")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()

    workers = Workers.join()
    torch.manual_seed(options.seed)
    pools = Pools(options.work / "latents", options.pools, workers.device)
    model = Trainee(pools.clips[0][0].shape[1], build_tokenizer()).to(workers.device)
    path = options.work / f"{options.name}.pt"
    if options.init and not path.exists():
        load_average(model, options.work / f"{options.init}.pt", workers.device)
    trainer = Trainer(model, optimizers(model, options.rate), options.average, path, workers)
    if options.compile:
        model.transformer.compile_repeated_blocks(dynamic=False)

    def step(number: int) -> dict[str, float]:
        rng, generator = workers.randomness(options.seed, number)
        pool = pools.draw(options.seed, number)
        clips, scenes, shift = pools.batch(pool, options.tokens, rng)
        lengths = torch.tensor([rng.choice(TEXT_LENGTHS) for _ in scenes], device=workers.device)
        captions = [training_caption(scene, rng) for scene in scenes]
        sigmas = sample_sigmas(len(scenes), shift, generator)
        noise = torch.randn(clips.shape, generator=generator, device=workers.device)
        loss = model.loss(clips, captions, lengths, sigmas, noise).mean()
        trainer.update(loss, number, options.steps)
        return {f"loss[{pools.sizes[pool]}]": loss.item()}

    run_steps(workers, first=trainer.first, steps=options.steps, minutes=options.minutes, step=step, save=trainer.save)


@torch.no_grad()
def load_average(model: Trainee, path: Path, device: torch.device) -> None:
    """Sets a model to the averaged weights of a checkpoint."""
    values = torch.load(path, map_location=device, weights_only=True)["average"]
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.copy_(value)


if __name__ == "__main__":
    main()
