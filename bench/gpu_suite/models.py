"""Published transformers with random weights and few blocks, and the settings that they run with, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Model:
    """A transformer in its pipeline, without text encoder and autoencoder.

    Attributes:
        pipeline, transformer, scheduler: names of classes of diffusers.
        sizes: arguments of the transformer, where they are not its defaults; the numbers of blocks are cut.
        blocks: of the published transformer, by argument.
        call: arguments of the pipeline's call, one guidance branch.
        embeds: shapes of what text encoders would give, by argument.
        latents: shape of the noise.
        shift: of the scheduler, as the published pipeline has it.
        mask: the argument that tells which text tokens are no padding, and its shape; half of them are, chosen by us.
    """

    pipeline: str
    transformer: str
    scheduler: str
    sizes: dict[str, Any]
    blocks: dict[str, int]
    call: dict[str, Any]
    embeds: dict[str, tuple[int, ...]]
    latents: tuple[int, ...]
    shift: dict[str, Any] = field(default_factory=dict)
    mask: tuple[str, tuple[int, ...]] | None = None

    @property
    def share(self) -> float:
        """How many of the published blocks are here."""
        return sum(self.sizes[name] for name in self.blocks) / sum(self.blocks.values())


def _wan(layers: tuple[int, int], size: tuple[int, int, int], text: int = 4096, **sizes: Any) -> Model:
    """`layers` here and in the published one; `size` in frames and pixels."""
    frames, height, width = size
    return Model(
        "WanPipeline",
        "WanTransformer3DModel",
        "UniPCMultistepScheduler",
        {"num_layers": layers[0], "text_dim": text, **sizes},
        {"num_layers": layers[1]},
        {"num_frames": frames, "height": height, "width": width, "guidance_scale": 1.0},
        {"prompt_embeds": (1, 512, text)},
        (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8),
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0 if height > 480 else 3.0},
    )


def _flux(layers: tuple[int, int], pixels: int, text: int = 4096, **sizes: Any) -> Model:
    return Model(
        "FluxPipeline",
        "FluxTransformer2DModel",
        "FlowMatchEulerDiscreteScheduler",
        {
            "num_layers": layers[0],
            "num_single_layers": layers[1],
            "joint_attention_dim": text,
            "guidance_embeds": True,
            **sizes,
        },
        {"num_layers": 19, "num_single_layers": 38},
        {"height": pixels, "width": pixels, "guidance_scale": 3.5},
        {"prompt_embeds": (1, 512, text), "pooled_prompt_embeds": (1, 768)},
        (1, (pixels // 16) ** 2, 64),
        {"use_dynamic_shifting": True, "shift": 3.0},
    )


def _hunyuan(layers: tuple[int, int], size: tuple[int, int, int], text: int = 4096, **sizes: Any) -> Model:
    frames, height, width = size
    return Model(
        "HunyuanVideoPipeline",
        "HunyuanVideoTransformer3DModel",
        "FlowMatchEulerDiscreteScheduler",
        {"num_layers": layers[0], "num_single_layers": layers[1], "text_embed_dim": text, **sizes},
        {"num_layers": 20, "num_single_layers": 40},
        {"num_frames": frames, "height": height, "width": width, "guidance_scale": 6.0},
        {"prompt_embeds": (1, 256, text), "pooled_prompt_embeds": (1, 768)},
        (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8),
        {"shift": 7.0},
        ("prompt_attention_mask", (1, 256)),
    )


# Sizes are those of `bench.kernels.sizes`; Wan 1.3B is whole.
MODELS = {
    "wan-1.3b-480p": _wan((30, 30), (81, 480, 832), num_attention_heads=12, ffn_dim=8960),
    "wan-14b-720p": _wan((4, 40), (81, 720, 1280), num_attention_heads=40, ffn_dim=13_824),
    "flux-1024": _flux((4, 8), 1024),
    "hunyuan-video-720p": _hunyuan((1, 2), (129, 720, 1280)),
}
_SMALL = {"num_attention_heads": 2, "attention_head_dim": 64}
_AXES = (16, 24, 24)
# The same in small, for a CPU: as many families, forms of guidance and kinds of blocks.
TINY = {
    "wan-1.3b-480p": _wan((2, 30), (17, 128, 128), 32, ffn_dim=64, **_SMALL),
    "wan-14b-720p": _wan((2, 40), (17, 128, 144), 32, ffn_dim=128, **_SMALL),
    "flux-1024": _flux((1, 2), 320, 32, axes_dims_rope=_AXES, **_SMALL),
    "hunyuan-video-720p": _hunyuan((1, 1), (17, 128, 128), 32, rope_axes_dim=_AXES, mlp_ratio=1.0, **_SMALL),
}


@dataclass(frozen=True)
class Setting:
    """A configuration of Accel as plain data, and so many steps as its methods need to act."""

    steps: int
    config: dict[str, Any]


def _pisa(density: float) -> dict[str, Any]:
    return {"method": "pisa", "density": density, "dense_steps": 0.0, "dense_layers": 0}


# On random weights no change settles: with this threshold the cache skips all that its other settings allow.
_TDC = {"method": "tdc", "threshold": 1e6, "early": 0.0, "dense_steps": 0.0, "dense_final_steps": 0.0}
# With what says most first, for a run that is cut off. Mixed precision measures its layers in the first of its steps.
SETTINGS = {
    "pisa 0.125": Setting(2, {"attention": _pisa(0.125)}),
    "tdc, pisa 0.125, int8": Setting(6, {"attention": _pisa(0.125), "cache": [_TDC], "quantize": {"method": "int8"}}),
    "int8": Setting(2, {"quantize": {"method": "int8"}}),
    "tdc": Setting(6, {"cache": [_TDC]}),
    "adaspa 0.125": Setting(4, {"attention": {"method": "adaspa", "density": 0.125, "search_steps": [0.0]}}),
    "mixed": Setting(4, {"quantize": {"method": "mixed"}}),
    "flashblock": Setting(3, {"cache": [{"method": "flashblock", "dense_steps": 0.0}]}),
    "delta": Setting(4, {"cache": [{"method": "delta", "dense_steps": 0.0}]}),
    "tdc, pisa 0.125, mixed": Setting(6, {"attention": _pisa(0.125), "cache": [_TDC], "quantize": {"method": "mixed"}}),
    "pisa 0.25": Setting(2, {"attention": _pisa(0.25)}),
}


def transformer(model: Model, device: str, *, whole: bool = False) -> Any:
    """The transformer with random weights; `whole` with all its published blocks."""
    import diffusers

    sizes = {**model.sizes, **(model.blocks if whole else {})}
    torch.manual_seed(0)
    # What is made in inference mode could not be given other weights and back outside of it.
    with torch.inference_mode(False), torch.device(device):
        made = getattr(diffusers, model.transformer)(**sizes).eval().requires_grad_(False)
        for name, parameter in made.named_parameters():
            # As diffusers loads it: some parts stay wide.
            if not any(part in name.split(".") for part in made._keep_in_fp32_modules or ()):
                parameter.data = parameter.data.to(dtype_on(device))
    return made


def pipeline(model: Model, device: str, *, whole: bool = False) -> Any:
    """The pipeline around `transformer`."""
    import diffusers

    made = getattr(diffusers, model.pipeline)
    parts: dict[str, Any] = dict.fromkeys(_parts(made))
    parts["scheduler"] = getattr(diffusers, model.scheduler)(**model.shift)
    parts["transformer"] = transformer(model, device, whole=whole)
    pipe = made(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(model: Model, steps: int, device: str) -> dict[str, Any]:
    """Those of a call, always the same of a model."""
    dtype, generator = dtype_on(device), torch.Generator(device).manual_seed(0)

    def noise(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    given = {**model.call, "num_inference_steps": steps, "output_type": "latent"}
    given |= {name: noise(shape, dtype) for name, shape in model.embeds.items()}
    # Wan's and HunyuanVideo's loops hold float32, FLUX's the dtype of the text.
    given["latents"] = noise(model.latents, dtype if model.pipeline == "FluxPipeline" else torch.float32)
    if model.mask is not None:
        name, shape = model.mask
        given[name] = (torch.arange(shape[1], device=device) < shape[1] // 2).long().expand(shape)
    return given


def config_for(setting: Setting, model: Model, memory: int | None) -> dict[str, Any]:
    """The configuration; FlashBlock may hold what the published transformer would leave it for the blocks that are
    here: half of a device's `memory` in bytes beside all weights in 16 bits. None sets no limit."""
    if memory is None or not any(cache["method"] == "flashblock" for cache in setting.config.get("cache", ())):
        return setting.config
    all_weights = 2 * sum(parameter.numel() for parameter in transformer(model, "meta", whole=True).parameters())
    limit = max(0.5 * (memory - all_weights) * model.share / 1e9, 1e-3)
    caches = [
        {**cache, "memory_limit": round(limit, 3)} if cache["method"] == "flashblock" else cache
        for cache in setting.config["cache"]
    ]
    return {**setting.config, "cache": caches}


def tokens(model: Model) -> int:
    """Image or video tokens of a call."""
    return model.latents[1] if len(model.latents) == 3 else math.prod(model.latents[2:]) // 4


def dtype_on(device: str) -> torch.dtype:
    """What pipelines compute in: 16 bits on a GPU."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def _parts(made: Any) -> list[str]:
    """The components that a pipeline's class asks for."""
    import inspect

    asked = inspect.signature(made.__init__).parameters.values()
    return [one.name for one in asked if one.name != "self" and one.default is inspect.Parameter.empty]
