"""A tiny Z-Image pipeline. The builder takes `seed`, default 0."""

from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

from tests.tiny import text
from tests.tiny.calls import PROMPTED
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE = 2, 64
TEXT_WIDTH = 32
CHANNELS = 4


@tiny
def z_image() -> ZImagePipeline:
    """Batched guidance in the order [cond, uncond], lists of samples, text behind the image in the one stream."""
    tokenizer = text.qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=CHANNELS,
        dim=HEADS * HEAD_SIZE,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=HEADS,
        n_kv_heads=HEADS,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[16, 24, 24],
        axes_lens=[96, 32, 32],
    )
    vae = AutoencoderKL(
        block_out_channels=(8,),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=48,
        shift_factor=0.06,
    )
    return ZImagePipeline(
        tokenizer=tokenizer,
        text_encoder=text.qwen3_encoder(tokenizer, TEXT_WIDTH),
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


CASES: tuple[dict[str, Any], ...] = (
    {
        "name": "z_image",
        "family": "z_image",
        "build": z_image,
        # 572 tokens of the image are filled up to 576, and those of the text to 32.
        "call": {**PROMPTED, "negative_prompt": "blurred", "height": 44, "width": 52, "guidance_scale": 4.0},
        "stacks": ("layers",),
        "tokens": 572,
        "text_tokens": 4 + 32,
        "joined": ("layers",),
        # At 1 it calls for both branches and uses one.
        "other_guidance": {"guidance_scale": 0.0},
    },
)
