"""Tiny HunyuanVideo 1.5 pipelines: 2 x 16 x 16 = 512 video tokens from 5 frames of 64 x 64 pixels.

Their autoencoder makes one pixel of four by four and the transformer a token of each.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from diffusers.guiders import ClassifierFreeGuidance
from transformers import ByT5Tokenizer

from tests.tiny import text
from tests.tiny.calls import STEPS, VIDEO, picture
from tests.tiny.vision import SIGLIP_TOKENS, siglip_encoder, siglip_processor
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE = 2, 64
TEXT_WIDTH = 32
CHANNELS = 4
SIZE = 64
WORDS, LETTERS = 24, 8


def _parts() -> dict[str, Any]:
    tokenizer, tokenizer_2 = text.llama_tokenizer(), ByT5Tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=2 * CHANNELS + 1,
        out_channels=CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        num_layers=4,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=TEXT_WIDTH,
        text_embed_2_dim=TEXT_WIDTH,
        image_embed_dim=TEXT_WIDTH,
        rope_axes_dim=(16, 24, 24),
        target_size=SIZE,
    )
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=CHANNELS,
        block_out_channels=(16, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text.llama_encoder(tokenizer, TEXT_WIDTH),
        "tokenizer_2": tokenizer_2,
        "text_encoder_2": text.t5_encoder(tokenizer_2, TEXT_WIDTH),
        "vae": vae,
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "guider": ClassifierFreeGuidance(),
    }


def _with_short_texts(pipe: Any) -> Any:
    pipe.system_message, pipe.prompt_template_encode_start_idx = "", 0
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = WORDS, LETTERS
    pipe.vision_num_semantic_tokens = SIGLIP_TOKENS
    return pipe


def _heard(build: Callable[..., Any]) -> Callable[..., Any]:
    """Keys of the text so long that the video, which nothing else tells of the prompt, attends to some of them."""

    @wraps(build)
    def louder(seed: int = 0) -> Any:
        pipe = build(seed)
        with torch.no_grad():
            for block in pipe.transformer.transformer_blocks:
                block.attn.norm_added_k.weight.mul_(4)
        return pipe

    return louder


@_heard
@tiny
def hunyuan_video15() -> HunyuanVideo15Pipeline:
    """A guider's branches "pred_cond" and "pred_uncond"; behind the video a text of three parts, most of it padding."""
    return _with_short_texts(HunyuanVideo15Pipeline(**_parts()))


@_heard
@tiny
def hunyuan_video15_i2v() -> HunyuanVideo15ImageToVideoPipeline:
    """The picture in channels of its own and among the text."""
    pipe = HunyuanVideo15ImageToVideoPipeline(
        **_parts(), image_encoder=siglip_encoder(TEXT_WIDTH), feature_extractor=siglip_processor()
    )
    return _with_short_texts(pipe)


_SHARED: dict[str, Any] = {
    "family": "hunyuan_video15",
    "stacks": ("transformer_blocks",),
    "tokens": 512,
    "text_tokens": SIGLIP_TOKENS + LETTERS + WORDS,
    "forwards": {"transformer": 2 * STEPS},
}
_CALL: dict[str, Any] = {
    **{name: value for name, value in VIDEO.items() if name not in ("height", "width", "max_sequence_length")},
    "prompt": 'a "fox"',
    "negative_prompt": "blurred",
    "guidance_scale": 5.0,
}

CASES: tuple[dict[str, Any], ...] = (
    {
        **_SHARED,
        "name": "hunyuan_video15",
        "build": hunyuan_video15,
        "call": {**_CALL, "height": SIZE, "width": SIZE},
    },
)

KIN: tuple[dict[str, Any], ...] = (
    {
        **_SHARED,
        "name": "hunyuan_video15_i2v",
        "build": hunyuan_video15_i2v,
        "call": {**_CALL, "image": picture(SIZE)},
    },
)
