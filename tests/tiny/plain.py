"""Tiny image pipelines whose blocks have the image alone as their stream: PixArt-sigma and Sana.

Every builder takes `seed`, default 0.
"""

from typing import Any

from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)

from tests.tiny import text
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE = 2, 64
WIDTH = HEADS * HEAD_SIZE
TEXT_WIDTH = 32
CHANNELS = 4
IMAGE_SIZE = 48


@tiny
def pixart() -> PixArtSigmaPipeline:
    """Batched guidance, text by cross-attention with a mask over its padding; predicts a variance too."""
    tokenizer = text.t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=IMAGE_SIZE,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=4,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
    )
    vae = AutoencoderKL(
        block_out_channels=(8,),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
    )
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=text.t5_encoder(tokenizer, TEXT_WIDTH),
        vae=vae,
        transformer=transformer,
        # An untrained model that predicts noise would blow the latents up; predicting the velocity, it does not.
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
    )


@tiny
def sana() -> SanaPipeline:
    """Batched guidance, linear attention, convolutions between the tokens; reads with Llama, in place of Gemma."""
    tokenizer = text.llama_tokenizer()
    transformer = SanaTransformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=4,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=HEAD_SIZE,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
        mlp_ratio=2.0,
        sample_size=IMAGE_SIZE // 2,
        patch_size=1,
        interpolation_scale=1,
    )
    blocks: dict[str, Any] = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in {
            "block_types": "ResBlock",
            "block_out_channels": (8, 8, 8),
            "layers_per_block": (1, 1, 1),
            "qkv_multiscales": ((), (), ()),
        }.items()
    }
    vae = AutoencoderDC(latent_channels=CHANNELS, attention_head_dim=8, **blocks)
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text.llama_encoder(tokenizer, TEXT_WIDTH),
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
