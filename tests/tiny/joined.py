"""Tiny image pipelines with blocks to which image and text are one stream: FLUX.2 and its Klein.

Every builder takes `seed`, default 0.
"""

from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)

from tests.tiny import text
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE = 2, 64
TEXT_WIDTH = 32
CHANNELS = 4


def _flux2_parts(*, guidance_embeds: bool) -> dict[str, Any]:
    tokenizer = text.qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=HEAD_SIZE,
        num_attention_heads=HEADS,
        joint_attention_dim=3 * TEXT_WIDTH,
        timestep_guidance_channels=64,
        mlp_ratio=2.0,
        axes_dims_rope=(8, 24, 24, 8),
        guidance_embeds=guidance_embeds,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=48,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text.qwen3_encoder(tokenizer, TEXT_WIDTH),
        "vae": vae,
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


@tiny
def flux2() -> Flux2Pipeline:
    """Distilled guidance (one call per step), text first; reads with Klein's language model, in place of Mistral's."""
    return Flux2Pipeline(**_flux2_parts(guidance_embeds=True))


@tiny
def flux2_klein() -> Flux2KleinPipeline:
    """Two calls per step, in the cache contexts "cond" and "uncond"."""
    return Flux2KleinPipeline(**_flux2_parts(guidance_embeds=False), is_distilled=False)
