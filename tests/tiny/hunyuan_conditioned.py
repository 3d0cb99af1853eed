"""Tiny HunyuanVideo pipelines that begin with a picture. Sizes are those of `tests.tiny.video`."""

from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoTransformer3DModel,
)

from tests.tiny import text
from tests.tiny.calls import STEPS, TRUE_GUIDANCE, VIDEO, noise
from tests.tiny.video import CHANNELS, HUNYUAN_SHAPE, TEXT_WIDTH, hunyuan_autoencoder
from tests.tiny.vision import HEADER_END, IMAGE, IMAGE_TOKENS, clip_image_processor, llava_encoder, llava_tokenizer
from tests.tiny.weights import tiny


def _pipeline(**shape: Any) -> HunyuanVideoImageToVideoPipeline:
    tokenizer, tokenizer_2 = llava_tokenizer(), text.clip_tokenizer()
    return HunyuanVideoImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=llava_encoder(tokenizer, TEXT_WIDTH),
        tokenizer_2=tokenizer_2,
        text_encoder_2=text.clip_encoder(tokenizer_2, TEXT_WIDTH),
        vae=hunyuan_autoencoder(),
        transformer=HunyuanVideoTransformer3DModel(**{**HUNYUAN_SHAPE, **shape}),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        image_processor=clip_image_processor(),
    )


@tiny
def hunyuan_video_i2v() -> HunyuanVideoImageToVideoPipeline:
    """The tokens of the first frame are those of the picture, and blocks treat them as if at timestep 0."""
    return _pipeline(image_condition_type="token_replace", guidance_embeds=True)


@tiny
def hunyuan_video_i2v_concat() -> HunyuanVideoImageToVideoPipeline:
    """The picture comes in channels of its own; guidance is true, two calls per step without a cache context."""
    return _pipeline(in_channels=2 * CHANNELS + 1, image_condition_type="latent_concat", guidance_embeds=False)


def _call(kept_image_tokens: int) -> dict[str, Any]:
    # What stands before the prompt, and the four tokens behind it, are cut off again.
    before = HEADER_END, IMAGE, HEADER_END
    return {
        **VIDEO,
        "image": noise(1, 3, 48, 64),
        "num_frames": 9,
        "guidance_scale": 4.5,
        "max_sequence_length": 64 + 4 - kept_image_tokens,
        "prompt_template": {
            "template": "".join(before) + "{}" + 3 * "|" + HEADER_END,
            "crop_start": len(before),
            "image_emb_start": 1,
            "image_emb_end": 1 + IMAGE_TOKENS,
            "image_emb_len": IMAGE_TOKENS,
        },
    }


_SHARED: dict[str, Any] = {
    "family": "hunyuan_video",
    "stacks": ("transformer_blocks", "single_transformer_blocks"),
    "tokens": 576,
    "text_tokens": 64,
}

CASES: tuple[dict[str, Any], ...] = (
    {
        **_SHARED,
        "name": "hunyuan_video_i2v",
        "build": hunyuan_video_i2v,
        "call": _call(kept_image_tokens=1),
        "other_guidance": TRUE_GUIDANCE,
    },
)

KIN: tuple[dict[str, Any], ...] = (
    {
        **_SHARED,
        "name": "hunyuan_video_i2v_concat",
        "build": hunyuan_video_i2v_concat,
        "call": {**_call(kept_image_tokens=2), **TRUE_GUIDANCE},
        "forwards": {"transformer": 2 * STEPS},
        "other_guidance": {"true_cfg_scale": 1.0},
    },
)
