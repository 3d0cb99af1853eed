"""Tiny MotifVideo pipelines: 3 x 12 x 16 = 576 tokens from 5 frames of 48 x 64 pixels, as Wan's; so is the autoencoder.

Of two single blocks the last is a decoder's: it is given the tokens as they were before the first block, and the video
that the others made in the place of the text.
"""

from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    MotifVideoImage2VideoPipeline,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
)
from diffusers.guiders import ClassifierFreeGuidance

from tests.tiny.calls import GUIDED_VIDEO, STEPS, TEXT_TOKENS, picture
from tests.tiny.text import t5gemma_encoder
from tests.tiny.video import HEAD_SIZE, HEADS, TEXT_WIDTH, WAN_CHANNELS, wan_parts
from tests.tiny.vision import SIGLIP_TOKENS, siglip_config, siglip_processor
from tests.tiny.weights import tiny


def _parts() -> dict[str, Any]:
    parts = wan_parts(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    transformer = MotifVideoTransformer3DModel(
        in_channels=2 * WAN_CHANNELS + 1,
        out_channels=WAN_CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        num_layers=2,
        num_single_layers=2,
        num_decoder_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=TEXT_WIDTH,
        image_embed_dim=TEXT_WIDTH,
        rope_axes_dim=(16, 24, 24),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    encoder = t5gemma_encoder(parts["tokenizer"], TEXT_WIDTH, siglip_config(TEXT_WIDTH).to_dict())
    return {**parts, "text_encoder": encoder, "transformer": transformer, "guider": ClassifierFreeGuidance()}


@tiny
def motif_video() -> MotifVideoPipeline:
    """A guider's branches "pred_cond" and "pred_uncond"; text behind the video, and by an attention of its own."""
    return MotifVideoPipeline(**_parts())


@tiny
def motif_video_i2v() -> MotifVideoImage2VideoPipeline:
    """The picture in channels of its own, and as tokens before the text."""
    return MotifVideoImage2VideoPipeline(**_parts(), feature_extractor=siglip_processor())


_SHARED: dict[str, Any] = {
    "family": "motif_video",
    "stacks": ("transformer_blocks", "single_transformer_blocks"),
    "tokens": 576,
    "forwards": {"transformer": 2 * STEPS},
    "decoding": 1,
}

CASES: tuple[dict[str, Any], ...] = (
    {**_SHARED, "name": "motif_video", "build": motif_video, "call": GUIDED_VIDEO, "text_tokens": TEXT_TOKENS},
)

KIN: tuple[dict[str, Any], ...] = (
    {
        **_SHARED,
        "name": "motif_video_i2v",
        "build": motif_video_i2v,
        "call": {**GUIDED_VIDEO, "image": picture(64)},
        "text_tokens": SIGLIP_TOKENS + TEXT_TOKENS,
    },
)
