"""Tiny CogView4 pipelines, plain and with a picture to go by. Every builder takes `seed`, default 0."""

from typing import Any

from diffusers import (
    AutoencoderKL,
    CogView4ControlPipeline,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)

from tests.tiny import text
from tests.tiny.calls import PROMPTED, STEPS, noise
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE = 2, 64
TEXT_WIDTH = 32
CHANNELS = 4
IMAGE_SIZE = 48


def _parts(channels: int) -> dict[str, Any]:
    tokenizer = text.llama_tokenizer()
    transformer = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=channels,
        out_channels=CHANNELS,
        num_layers=4,
        attention_head_dim=HEAD_SIZE,
        num_attention_heads=HEADS,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=64,
        condition_dim=16,
        sample_size=IMAGE_SIZE,
    )
    vae = AutoencoderKL(
        block_out_channels=(8,),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text.llama_encoder(tokenizer, TEXT_WIDTH),
        "vae": vae,
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


@tiny
def cogview4() -> CogView4Pipeline:
    """Two calls per step, text first and padded in front; reads with Llama, in place of GLM."""
    return CogView4Pipeline(**_parts(CHANNELS))


@tiny
def cogview4_control() -> CogView4ControlPipeline:
    """The picture to go by in channels of its own; the calls name no branch."""
    return CogView4ControlPipeline(**_parts(2 * CHANNELS))


_SHARED: dict[str, Any] = {
    "family": "cogview4",
    "stacks": ("transformer_blocks",),
    "tokens": 576,
    "text_tokens": 16,
    "forwards": {"transformer": 2 * STEPS},
}
_CALL: dict[str, Any] = {
    **PROMPTED,
    "negative_prompt": "blurred",
    "height": IMAGE_SIZE,
    "width": IMAGE_SIZE,
    "guidance_scale": 5.0,
}

CASES: tuple[dict[str, Any], ...] = ({**_SHARED, "name": "cogview4", "build": cogview4, "call": _CALL},)

KIN: tuple[dict[str, Any], ...] = (
    {
        **_SHARED,
        "name": "cogview4_control",
        "build": cogview4_control,
        "call": {**_CALL, "control_image": noise(1, 3, IMAGE_SIZE, IMAGE_SIZE)},
    },
)
