"""Tiny LTX-Video pipelines: 2 x 16 x 16 = 512 tokens from 5 frames of 64 x 64 pixels, a multiple of 32 as they want."""

from typing import Any

from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)

from tests.tiny import text
from tests.tiny.calls import GUIDED_VIDEO, noise
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE = 2, 64
TEXT_WIDTH = 32
CHANNELS = 8


def _parts(scheduler: Any = None) -> dict[str, Any]:
    tokenizer = text.t5_tokenizer()
    transformer = LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        cross_attention_dim=HEADS * HEAD_SIZE,
        num_layers=4,
        caption_channels=TEXT_WIDTH,
    )
    # Two of four levels halve time, height and width.
    vae = AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text.t5_encoder(tokenizer, TEXT_WIDTH),
        "vae": vae,
        "transformer": transformer,
        "scheduler": scheduler or FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


@tiny
def ltx() -> LTXPipeline:
    """Batched guidance [uncond, cond] on tokens that the pipeline has packed; text by a masked attention of its own."""
    return LTXPipeline(**_parts())


@tiny
def ltx_i2v() -> LTXImageToVideoPipeline:
    """The first frame is given: its tokens have the timestep 0, and the scheduler never sees them."""
    return LTXImageToVideoPipeline(**_parts())


@tiny
def ltx_condition() -> LTXConditionPipeline:
    """Pictures at any frame, whose tokens stand before those of the video; every token tells its coordinates."""
    return LTXConditionPipeline(**_parts(FlowMatchEulerDiscreteScheduler()))


_SHARED: dict[str, Any] = {
    "family": "ltx",
    "stacks": ("transformer_blocks",),
    "tokens": 512,
    "text_tokens": 0,
    "smaller": 32,
}
_CALL = {**GUIDED_VIDEO, "height": 64, "width": 64, "guidance_scale": 3.0}

CASES: tuple[dict[str, Any], ...] = (
    {**_SHARED, "name": "ltx", "build": ltx, "call": _CALL},
    {**_SHARED, "name": "ltx_i2v", "build": ltx_i2v, "call": {**_CALL, "image": noise(1, 3, 64, 64)}},
)

KIN: tuple[dict[str, Any], ...] = (
    {
        **_SHARED,
        "name": "ltx_condition",
        "build": ltx_condition,
        "call": {**_CALL, "image": noise(1, 3, 64, 64), "frame_index": 4},
        "references": 256,
    },
)
