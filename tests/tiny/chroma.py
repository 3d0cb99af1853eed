"""A tiny Chroma pipeline. The builder takes `seed`, default 0."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from diffusers import AutoencoderKL, ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

from tests.tiny import text
from tests.tiny.calls import PROMPTED, STEPS, TEXT_TOKENS
from tests.tiny.weights import SLOW_FREQUENCY, tiny

HEADS, HEAD_SIZE = 2, 64
TEXT_WIDTH = 32
CHANNELS = 4
MODULATION_CHANNELS = 64


def _slowly_modulated(build: Callable[..., Any]) -> Callable[..., Any]:
    """A network that makes the modulation and hears the slow part of the timestep's sinusoids only."""

    @wraps(build)
    def slower(seed: int = 0) -> Any:
        pipe = build(seed)
        frequency = 10000 ** -(torch.arange(8) / 8)
        with torch.no_grad():
            weight = pipe.transformer.distilled_guidance_layer.in_proj.weight
            weight[:, :16].mul_((1 / (1 + (frequency / SLOW_FREQUENCY) ** 2)).repeat(2))
        return pipe

    return slower


@_slowly_modulated
@tiny
def chroma() -> ChromaPipeline:
    """Two calls per step, text first and padded; of the padding all but the first token weighs less."""
    tokenizer = text.t5_tokenizer()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
        transformer = ChromaTransformer2DModel(
            in_channels=4 * CHANNELS,
            num_layers=3,
            num_single_layers=3,
            attention_head_dim=HEAD_SIZE,
            num_attention_heads=HEADS,
            joint_attention_dim=TEXT_WIDTH,
            axes_dims_rope=(16, 24, 24),
            approximator_num_channels=MODULATION_CHANNELS,
            approximator_hidden_dim=64,
            approximator_layers=2,
        )
    vae = AutoencoderKL(
        block_out_channels=(8,),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=48,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
    )
    return ChromaPipeline(
        tokenizer=tokenizer,
        text_encoder=text.t5_encoder(tokenizer, TEXT_WIDTH),
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


CASES: tuple[dict[str, Any], ...] = (
    {
        "name": "chroma",
        "family": "chroma",
        "build": chroma,
        "call": {**PROMPTED, "negative_prompt": "blurred", "height": 44, "width": 52, "guidance_scale": 4.0},
        "stacks": ("transformer_blocks", "single_transformer_blocks"),
        "tokens": 572,
        "text_tokens": TEXT_TOKENS,
        "forwards": {"transformer": 2 * STEPS},
        "joined": ("single_transformer_blocks",),
    },
)
