"""Tiny CogVideoX pipelines that begin with a picture or a film. Sizes are those of `tests.tiny.video`."""

from typing import Any

from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel, CogVideoXVideoToVideoPipeline

from tests.tiny.calls import FROM_VIDEO, GUIDED_VIDEO, TEXT_TOKENS, noise
from tests.tiny.video import CHANNELS, COGVIDEOX_SHAPE, cogvideox_parts
from tests.tiny.weights import tiny


@tiny
def cogvideox15_i2v() -> CogVideoXImageToVideoPipeline:
    """The form of version 1.5: two latent frames make a token, a linear layer makes the patches, and an offset is
    embedded beside the timestep. Five latent frames are padded to six."""
    transformer = CogVideoXTransformer3DModel(
        **{
            **COGVIDEOX_SHAPE,
            "in_channels": 2 * CHANNELS,
            "patch_size_t": 2,
            "patch_bias": False,
            "ofs_embed_dim": COGVIDEOX_SHAPE["time_embed_dim"],
        }
    )
    return CogVideoXImageToVideoPipeline(**cogvideox_parts(), transformer=transformer)


@tiny
def cogvideox_v2v() -> CogVideoXVideoToVideoPipeline:
    """Video to video, which in version 1 has the transformer of text to video."""
    return CogVideoXVideoToVideoPipeline(
        transformer=CogVideoXTransformer3DModel(**COGVIDEOX_SHAPE), **cogvideox_parts()
    )


_SHARED: dict[str, Any] = {
    "family": "cogvideox",
    "stacks": ("transformer_blocks",),
    "tokens": 576,
    "text_tokens": TEXT_TOKENS,
}

CASES: tuple[dict[str, Any], ...] = (
    {
        **_SHARED,
        "name": "cogvideox15_i2v",
        "build": cogvideox15_i2v,
        "call": {**GUIDED_VIDEO, "image": noise(1, 3, 48, 64), "num_frames": 9},
    },
)

KIN: tuple[dict[str, Any], ...] = (
    {
        **_SHARED,
        "name": "cogvideox_v2v",
        "build": cogvideox_v2v,
        "call": {**FROM_VIDEO, "video": noise(1, 5, 3, 48, 64), "strength": 1.0},
    },
)
