"""A tiny HiDream-I1 pipeline. The builder takes `seed`, default 0."""

from typing import Any

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
)

from tests.tiny import text
from tests.tiny.calls import PROMPTED, TEXT_TOKENS
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE = 2, 64
TEXT_WIDTH = 32
CHANNELS = 4
IMAGE_SIZE = 48


@tiny
def hidream() -> HiDreamImagePipeline:
    """Batched guidance, text behind the image, of which a part is another for each block; experts."""
    tokenizer, tokenizer_3, tokenizer_4 = text.clip_tokenizer(), text.t5_tokenizer(), text.llama_tokenizer()
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=HEAD_SIZE,
        num_attention_heads=HEADS,
        caption_channels=[TEXT_WIDTH, TEXT_WIDTH],
        text_emb_dim=2 * TEXT_WIDTH,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(16, 24, 24),
        max_resolution=(IMAGE_SIZE, IMAGE_SIZE),
        llama_layers=[0, 1, 2, 2],
    )
    vae = AutoencoderKL(
        block_out_channels=(8,),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
        shift_factor=0.06,
    )
    pipe = HiDreamImagePipeline(
        tokenizer=tokenizer,
        text_encoder=text.projected_clip_encoder(tokenizer, TEXT_WIDTH),
        tokenizer_2=tokenizer,
        text_encoder_2=text.projected_clip_encoder(tokenizer, TEXT_WIDTH),
        tokenizer_3=tokenizer_3,
        text_encoder_3=text.t5_encoder(tokenizer_3, TEXT_WIDTH),
        tokenizer_4=tokenizer_4,
        text_encoder_4=text.llama_writer(tokenizer_4, TEXT_WIDTH),
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    # To whose area the pipeline brings whatever size it is asked for.
    pipe.default_sample_size = IMAGE_SIZE
    return pipe


CASES: tuple[dict[str, Any], ...] = (
    {
        "name": "hidream",
        "family": "hidream",
        "build": hidream,
        "call": {
            **PROMPTED,
            "negative_prompt": "blurred",
            "height": IMAGE_SIZE,
            "width": IMAGE_SIZE,
            "guidance_scale": 5.0,
        },
        "stacks": ("double_stream_blocks", "single_stream_blocks"),
        "tokens": 576,
        # Of T5, of the last layer of Llama and of one of its layers for each block.
        "text_tokens": 3 * TEXT_TOKENS,
        "joined": ("single_stream_blocks",),
    },
)
