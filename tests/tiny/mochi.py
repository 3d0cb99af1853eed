"""A tiny Mochi pipeline: 3 x 12 x 16 = 576 video tokens from 48 x 64 pixels."""

from typing import Any

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel

from tests.tiny import text
from tests.tiny.calls import GUIDED_VIDEO, TEXT_TOKENS
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE = 2, 64
TEXT_WIDTH = 32
COMPRESSION = 2


@tiny
def mochi() -> MochiPipeline:
    """Batched guidance [uncond, cond], text last and cut to what counts, learned rotary positions on video tokens."""
    tokenizer = text.t5_tokenizer()
    transformer = MochiTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        num_layers=4,
        pooled_projection_dim=64,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=64,
    )
    # They begin as zeros, which would be no positions.
    torch.nn.init.normal_(transformer.pos_frequencies, std=0.05)
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32),
        decoder_block_out_channels=(32, 32),
        layers_per_block=(1, 1, 1),
        temporal_expansions=(COMPRESSION,),
        spatial_expansions=(COMPRESSION,),
        add_attention_block=(False, False, False),
    )
    pipe = MochiPipeline(
        tokenizer=tokenizer,
        text_encoder=text.t5_encoder(tokenizer, TEXT_WIDTH),
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    )
    # The pipeline does not ask its autoencoder.
    pipe.vae_spatial_scale_factor = pipe.vae_temporal_scale_factor = COMPRESSION
    pipe.video_processor.register_to_config(vae_scale_factor=COMPRESSION)
    return pipe


CASES: tuple[dict[str, Any], ...] = (
    {
        "name": "mochi",
        "family": "mochi",
        "build": mochi,
        "call": {**GUIDED_VIDEO, "guidance_scale": 3.0},
        "stacks": ("transformer_blocks",),
        "tokens": 576,
        "text_tokens": TEXT_TOKENS,
        "fewest_steps": 2,
    },
)
