"""Tiny SkyReels-V2 pipelines, on the parts of the tiny Wan ones."""

from typing import Any

from diffusers import (
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
)

from tests.tiny.calls import FROM_VIDEO, GUIDED_VIDEO, LONG_TEXT, STEPS, noise
from tests.tiny.video import COMPRESSION, HEAD_SIZE, HEADS, TEXT_WIDTH, WAN_CHANNELS, WAN_SHAPE, unipc, wan_parts
from tests.tiny.vision import clip_image_processor, clip_vision_encoder
from tests.tiny.weights import tiny


def _transformer(**shape: Any) -> SkyReelsV2Transformer3DModel:
    return SkyReelsV2Transformer3DModel(**{**WAN_SHAPE, **shape})


@tiny
def skyreels_v2() -> SkyReelsV2Pipeline:
    """Two guidance calls per step; every block is told of the frames per second."""
    return SkyReelsV2Pipeline(**wan_parts(), transformer=_transformer())


@tiny
def skyreels_v2_df() -> SkyReelsV2DiffusionForcingPipeline:
    """Every frame has a timestep of its own, the same at the same step unless frames follow each other."""
    return SkyReelsV2DiffusionForcingPipeline(**wan_parts(unipc()), transformer=_transformer(inject_sample_info=True))


@tiny
def skyreels_v2_i2v() -> SkyReelsV2ImageToVideoPipeline:
    """With an image encoder, as in Wan 2.1."""
    transformer = _transformer(
        in_channels=2 * WAN_CHANNELS + COMPRESSION, image_dim=TEXT_WIDTH, added_kv_proj_dim=HEADS * HEAD_SIZE
    )
    return SkyReelsV2ImageToVideoPipeline(
        **wan_parts(),
        transformer=transformer,
        image_encoder=clip_vision_encoder(TEXT_WIDTH),
        image_processor=clip_image_processor(),
    )


@tiny
def skyreels_v2_df_i2v() -> SkyReelsV2DiffusionForcingImageToVideoPipeline:
    """The first frame is done before the first step."""
    return SkyReelsV2DiffusionForcingImageToVideoPipeline(**wan_parts(unipc()), transformer=_transformer())


@tiny
def skyreels_v2_df_v2v() -> SkyReelsV2DiffusionForcingVideoToVideoPipeline:
    """Goes on from a film, in parts of three latent frames of which the first is the last before: each is a run."""
    return SkyReelsV2DiffusionForcingVideoToVideoPipeline(**wan_parts(unipc()), transformer=_transformer())


_SHARED: dict[str, Any] = {
    "family": "skyreels_v2",
    "stacks": ("blocks",),
    "tokens": 576,
    "text_tokens": 0,
    "forwards": {"transformer": 2 * STEPS},
}
_IMAGE = {"image": noise(1, 3, 48, 64)}

CASES: tuple[dict[str, Any], ...] = (
    {**_SHARED, "name": "skyreels_v2", "build": skyreels_v2, "call": GUIDED_VIDEO},
    {**_SHARED, "name": "skyreels_v2_df", "build": skyreels_v2_df, "call": GUIDED_VIDEO},
)

KIN: tuple[dict[str, Any], ...] = (
    {
        **_SHARED,
        "name": "skyreels_v2_i2v",
        "build": skyreels_v2_i2v,
        "call": {**GUIDED_VIDEO, **_IMAGE, **LONG_TEXT},
    },
    {**_SHARED, "name": "skyreels_v2_df_i2v", "build": skyreels_v2_df_i2v, "call": {**GUIDED_VIDEO, **_IMAGE}},
    {
        **_SHARED,
        "name": "skyreels_v2_df_v2v",
        "build": skyreels_v2_df_v2v,
        "call": {
            **FROM_VIDEO,
            "video": noise(1, 5, 3, 48, 64),
            "num_frames": 7,
            "base_num_frames": 5,
            "overlap_history": 3,
        },
    },
)
