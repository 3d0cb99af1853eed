"""A tiny Lumina Image 2.0 pipeline. The builder takes `seed`, default 0."""

from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

from tests.tiny import text
from tests.tiny.calls import PROMPTED, STEPS
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE = 2, 64
TEXT_WIDTH = 32
CHANNELS = 4
WORDS = 32


@tiny
def lumina2() -> Lumina2Pipeline:
    """Two calls per step, text first in the one stream, one key for two queries; reads with Llama, in place of Gemma.

    The pipeline takes its autoencoder to make one pixel of eight by eight, as it does here.
    """
    tokenizer = text.llama_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=48,
        patch_size=2,
        in_channels=CHANNELS,
        hidden_size=HEADS * HEAD_SIZE,
        num_layers=4,
        num_refiner_layers=1,
        num_attention_heads=HEADS,
        num_kv_heads=1,
        multiple_of=32,
        axes_dim_rope=(16, 24, 24),
        axes_lens=(64, 32, 32),
        cap_feat_dim=TEXT_WIDTH,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=48,
        shift_factor=0.06,
    )
    return Lumina2Pipeline(
        tokenizer=tokenizer,
        text_encoder=text.llama_encoder(tokenizer, TEXT_WIDTH),
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


CASES: tuple[dict[str, Any], ...] = (
    {
        "name": "lumina2",
        "family": "lumina2",
        "build": lumina2,
        "call": {
            **PROMPTED,
            # A token for each character, and both cut off at the same length.
            "prompt": "a red fox in the snow by a lake",
            "negative_prompt": "a blurred grey picture of nothing",
            "max_sequence_length": WORDS,
            "system_prompt": "",
            "height": 384,
            "width": 384,
            "guidance_scale": 4.0,
        },
        "stacks": ("layers",),
        "tokens": 576,
        "text_tokens": WORDS,
        "forwards": {"transformer": 2 * STEPS},
        "joined": ("layers",),
    },
)
