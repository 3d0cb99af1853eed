"""Whole pipelines on the device: the built-in model with each method, and one step of a random Wan-1.3B."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from bench.gpu_suite.cells import Cells

SETTINGS: dict[str, dict[str, Any]] = {
    "pisa 0.25": {"attention": "pisa", "density": 0.25},
    "adaspa 0.25": {"attention": "adaspa", "density": 0.25},
    "delta": {"cache": "delta"},
    "tdc": {"cache": "tdc"},
    "tdc, pisa 0.25": {"attention": "pisa", "cache": "tdc", "density": 0.25},
}
PROMPT = "a red circle moving left on a black background"


def run(cells: Cells, device: str, tiny: bool) -> None:
    """A cell for each setting of the built-in model, and one for each of the random transformer."""
    size = "quick" if tiny else "standard"
    for name, settings in SETTINGS.items():
        cells.run(f"demo/{name}", partial(_demo, settings, size, device), settings=settings, size=size)
    if not tiny:
        for density in (1.0, 0.25, 0.125):
            cells.run(f"wan_1.3b_random/{density:g}", partial(_wan, density, device), density=density)


def _demo(settings: dict[str, Any], size: str, device: str) -> dict[str, Any]:
    import accel
    from accel.measure.quality import psnr

    pipe = accel.load_pipeline("demo", size=size).to(device)
    if torch.device(device).type == "cuda":
        pipe.to(dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)

    def clip() -> Any:
        return pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="np").frames[0]

    clip()  # warm-up
    plain, plain_seconds, plain_peak = _timed(clip, device)
    with accel.enable(pipe, **settings) as session:
        clip()
        fast, seconds, peak = _timed(clip, device)
    run = session.summary().to_dict()["runs"][-1]
    return {
        "seconds": seconds,
        "plain_seconds": plain_seconds,
        "psnr_db": round(psnr(fast, plain), 2),
        "peak_mb": peak,
        "plain_peak_mb": plain_peak,
        "methods": run["methods"],
        "fallbacks": run["fallbacks"],
    }


def _wan(density: float, device: str) -> dict[str, Any]:
    """Three steps at 81 frames of 480 x 832, the first to warm up; the weights are random, so this is speed only."""
    from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    import accel

    torch.manual_seed(0)
    with torch.device(device):
        transformer = WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, num_layers=30, ffn_dim=8960, text_dim=4096
        ).to(torch.bfloat16)
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=UniPCMultistepScheduler(), transformer=transformer
    )
    pipe.set_progress_bar_config(disable=True)
    embeds = [torch.randn(1, 512, 4096, device=device, dtype=torch.bfloat16) for _ in range(2)]
    latents = torch.randn(1, 16, 21, 60, 104, device=device)

    def steps() -> Any:
        return pipe(
            prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], latents=latents, num_inference_steps=3,
            height=480, width=832, num_frames=81, output_type="latent",
        )  # fmt: skip

    steps()
    _, plain, plain_peak = _timed(steps, device)
    with accel.enable(pipe, attention=accel.PISAConfig(density=density, dense_steps=0.0, dense_layers=0)) as session:
        steps()
        _, seconds, peak = _timed(steps, device)
    run = session.summary().to_dict()["runs"][-1]
    return {
        "seconds": seconds,
        "plain_seconds": plain,
        "speed_up": round(plain / seconds, 3),
        "peak_mb": peak,
        "plain_peak_mb": plain_peak,
        "methods": run["methods"],
        "weights": "random: speed only",
    }


def _timed(call: Any, device: str) -> tuple[Any, float, float | None]:
    """What it returns, the least seconds of two calls, and the peak of memory in megabytes."""
    cuda = torch.device(device).type == "cuda"
    least, result = float("inf"), None
    for _ in range(2):
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        result = call()
        if cuda:
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - began)
    return result, round(least, 3), round(torch.cuda.max_memory_allocated() / 1e6) if cuda else None
