"""Whole pipelines on the device: the built-in model with each method, and a random transformer of Wan 1.3B's sizes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
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
CLIPS = 3
# Height, width and frames of the random transformer's clip, and its sizes; 32,760 tokens.
WAN = {"height": 480, "width": 832, "num_frames": 81}
WAN_SIZES = {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 8960, "text_dim": 4096}
TINY_WAN = {"height": 128, "width": 128, "num_frames": 17}
TINY_WAN_SIZES = {"num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2, "ffn_dim": 64, "text_dim": 32}
DENSITIES = (0.25, 0.125)
STEPS = 3


def run(cells: Cells, device: str, tiny: bool) -> None:
    """A cell for each setting of the built-in model, and one for each density of the random transformer."""
    size = "quick" if tiny else "standard"
    clip, sizes = (TINY_WAN, TINY_WAN_SIZES) if tiny else (WAN, WAN_SIZES)
    for density in DENSITIES:
        name = f"wan_1.3b_random/{density:g}"
        cells.run(name, partial(_wan, density, clip, sizes, device), density=density, **clip)
    for name, settings in dict(list(SETTINGS.items())[: 1 if tiny else None]).items():
        cells.run(f"demo/{name}", partial(_demo, settings, size, device), settings=settings, size=size)


def _demo(settings: dict[str, Any], size: str, device: str) -> dict[str, Any]:
    import accel
    from accel.measure.quality import psnr

    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    pipe = accel.load_pipeline("demo", size=size, torch_dtype=dtype, device=device)
    pipe.set_progress_bar_config(disable=True)

    def arguments() -> dict[str, Any]:
        return {"prompt": PROMPT, "generator": torch.Generator().manual_seed(0), "output_type": "np"}

    plain, fast, found = _compared(pipe, arguments, settings, device, CLIPS)
    return {**found, "psnr_db": round(psnr(fast, plain), 2)}


def _wan(density: float, clip: dict[str, int], sizes: dict[str, int], device: str) -> dict[str, Any]:
    """Three steps with guidance, without text encoder and VAE; the weights are random, so that this is speed only."""
    from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    import accel

    torch.manual_seed(0)
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    with torch.device(device):
        transformer = WanTransformer3DModel(**sizes).eval()
    for name, parameter in transformer.named_parameters():
        # As diffusers loads it: some parts stay wide.
        if not any(part in name.split(".") for part in transformer._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=UniPCMultistepScheduler(), transformer=transformer
    )
    pipe.set_progress_bar_config(disable=True)
    embeds = [torch.randn(1, 512, sizes["text_dim"], device=device, dtype=dtype) for _ in range(2)]
    frames = (clip["num_frames"] - 1) // 4 + 1
    latents = torch.randn(1, 16, frames, clip["height"] // 8, clip["width"] // 8, device=device)

    arguments = {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1], "latents": latents, **clip}
    arguments |= {"num_inference_steps": STEPS, "output_type": "latent"}
    settings = {"attention": accel.PISAConfig(density=density, dense_steps=0.0, dense_layers=0)}
    _, _, found = _compared(pipe, lambda: arguments, settings, device, 2)
    for row in found["rows"].values():
        row["seconds_a_step"] = round(row["loop_seconds"] / STEPS, 4)
    return {**found, "steps": STEPS, "weights": "random: speed only"}


def _compared(
    pipe: Any, arguments: Callable[[], dict[str, Any]], settings: dict[str, Any], device: str, repeats: int
) -> tuple[Any, Any, dict[str, Any]]:
    """The clips of the plain and of the accelerated pipeline, and their seconds and memory; both take turns."""
    import accel

    seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "accelerated": []}
    results, peaks, summary = {}, {}, {}
    for turn in range(repeats + 1):
        for name, times in seconds.items():
            with accel.enable(pipe, **settings) if name == "accelerated" else nullcontext() as session:
                results[name], whole, loop, peaks[name] = _timed(pipe, arguments(), device)
            if session is not None:
                (summary,) = session.summary().to_dict()["runs"]
            if turn > 0:  # The first of each is warm-up.
                times.append((whole, loop))
    rows = {}
    for name, times in seconds.items():
        whole, loop = (statistics.median(column) for column in zip(*times, strict=True))
        rows[name] = {"seconds": round(whole, 4), "loop_seconds": round(loop, 4), "peak_mb": peaks[name]}
    for row in rows.values():
        row["speed_up"] = round(rows["plain"]["loop_seconds"] / row["loop_seconds"], 3)
    found = {"rows": rows, "repeats": repeats, "methods": summary["methods"], "fallbacks": summary["fallbacks"]}
    return results["plain"], results["accelerated"], found


def _timed(pipe: Any, arguments: dict[str, Any], device: str) -> tuple[Any, float, float, float | None]:
    """The clip, the seconds of the call and of its denoising loop, and the peak of memory in megabytes."""
    from accel.measure.one_run import timed_run

    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    run = timed_run(pipe, arguments)
    peak = round(torch.cuda.max_memory_allocated() / 1e6) if cuda else None
    return run.output.frames[0], run.seconds, run.loop_seconds or run.seconds, peak
