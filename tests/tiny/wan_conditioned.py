"""Tiny Wan pipelines that begin with a picture or a film: image to video with an image encoder, without one and with a
timestep for each token, and video to video. Sizes are those of `tests.tiny.video`."""

from typing import Any

from diffusers import WanImageToVideoPipeline, WanTransformer3DModel, WanVideoToVideoPipeline

from tests.tiny.calls import FROM_VIDEO, GUIDED_VIDEO, LONG_TEXT, STEPS, noise
from tests.tiny.video import COMPRESSION, HEAD_SIZE, HEADS, TEXT_WIDTH, WAN_CHANNELS, WAN_SHAPE, wan_parts
from tests.tiny.vision import clip_image_processor, clip_vision_encoder
from tests.tiny.weights import tiny

# Noise, the first frame, and a mask that has a channel for every frame that a latent one stands for.
CONDITIONED = {**WAN_SHAPE, "in_channels": 2 * WAN_CHANNELS + COMPRESSION}


@tiny
def wan_i2v() -> WanImageToVideoPipeline:
    """Wan 2.1: tokens of the picture stand before those of the text, and blocks attend to both apart."""
    transformer = WanTransformer3DModel(**CONDITIONED, image_dim=TEXT_WIDTH, added_kv_proj_dim=HEADS * HEAD_SIZE)
    return WanImageToVideoPipeline(
        **wan_parts(),
        transformer=transformer,
        image_encoder=clip_vision_encoder(TEXT_WIDTH),
        image_processor=clip_image_processor(),
    )


@tiny
def wan22_i2v() -> WanImageToVideoPipeline:
    """Wan 2.2 of 14 billion parameters: two transformers, of eight steps four each, and no image encoder."""
    return WanImageToVideoPipeline(
        **wan_parts(),
        transformer=WanTransformer3DModel(**CONDITIONED),
        transformer_2=WanTransformer3DModel(**CONDITIONED),
        boundary_ratio=0.8,
    )


@tiny
def wan22_ti2v() -> WanImageToVideoPipeline:
    """Wan 2.2 of 5 billion parameters: the tokens of the first frame have the timestep 0."""
    return WanImageToVideoPipeline(**wan_parts(), transformer=WanTransformer3DModel(**WAN_SHAPE), expand_timesteps=True)


@tiny
def wan_v2v() -> WanVideoToVideoPipeline:
    """Two guidance calls per step without a cache context."""
    return WanVideoToVideoPipeline(**wan_parts(), transformer=WanTransformer3DModel(**WAN_SHAPE))


_SHARED: dict[str, Any] = {
    "family": "wan",
    "stacks": ("blocks",),
    "tokens": 576,
    "text_tokens": 0,
    "forwards": {"transformer": 2 * STEPS},
}
_FROM_IMAGE = {**GUIDED_VIDEO, "image": noise(1, 3, 48, 64)}

CASES: tuple[dict[str, Any], ...] = (
    {**_SHARED, "name": "wan_i2v", "build": wan_i2v, "call": {**_FROM_IMAGE, **LONG_TEXT}},
    {**_SHARED, "name": "wan22_ti2v", "build": wan22_ti2v, "call": _FROM_IMAGE},
)

KIN: tuple[dict[str, Any], ...] = (
    {
        **_SHARED,
        "name": "wan22_i2v",
        "build": wan22_i2v,
        "call": _FROM_IMAGE,
        "forwards": {"transformer": STEPS, "transformer_2": STEPS},
    },
    {
        **_SHARED,
        "name": "wan_v2v",
        "build": wan_v2v,
        "call": {**FROM_VIDEO, "video": noise(1, 5, 3, 48, 64), "strength": 1.0},
    },
)
