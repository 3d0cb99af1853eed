"""Tiny image pipelines that call twice for guidance: QwenImage, and those that change pictures or go by them.

Every builder takes `seed`, default 0.
"""

from typing import Any

from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import BatchEncoding, Qwen2Tokenizer

from tests.tiny import text
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE = 2, 64
TEXT_WIDTH = 32
CHANNELS = 4
# Pictures to edit are brought to a megapixel: 16 x 16 tokens by an autoencoder of so many levels.
EDITING = {"levels": 5, "width": 2}
SHAPE: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 4 * CHANNELS,
    "out_channels": CHANNELS,
    "attention_head_dim": HEAD_SIZE,
    "num_attention_heads": HEADS,
    "joint_attention_dim": TEXT_WIDTH,
    "axes_dims_rope": (16, 24, 24),
}


class Reader:
    """In the place of the processor of Qwen's model of language and vision: it shows the model no picture."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: list[str], images: Any = None, **settings: Any) -> BatchEncoding:
        return self.tokenizer(text, **settings)


def _parts(levels: int = 1, width: int = 4) -> dict[str, Any]:
    tokenizer = text.qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(**SHAPE, num_layers=4)
    vae = AutoencoderKLQwenImage(
        base_dim=width,
        z_dim=CHANNELS,
        dim_mult=[1] * (levels + 1),
        num_res_blocks=1,
        temperal_downsample=[False] * levels,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text.qwen_vl_encoder(tokenizer, TEXT_WIDTH),
        "vae": vae,
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def _brief(pipe: Any) -> Any:
    # The published template is longer than all that a tiny model should read.
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}", 0
    return pipe


@tiny
def qwenimage() -> QwenImagePipeline:
    """Text first, with a token for each character and without padding, and dual blocks alone."""
    return _brief(QwenImagePipeline(**_parts()))


@tiny
def qwenimage_controlnet() -> QwenImageControlNetPipeline:
    """With the residuals of a ControlNet added after the blocks."""
    controlnet = QwenImageControlNetModel(**SHAPE, num_layers=2)
    return _brief(QwenImageControlNetPipeline(**_parts(), controlnet=controlnet))


@tiny
def qwenimage_edit() -> QwenImageEditPipeline:
    """The tokens of a picture behind those of the image."""
    parts = _parts(**EDITING)
    return _brief(QwenImageEditPipeline(**parts, processor=Reader(parts["tokenizer"])))


@tiny
def qwenimage_edit_plus() -> QwenImageEditPlusPipeline:
    """The tokens of several pictures behind those of the image."""
    parts = _parts(**EDITING)
    return _brief(QwenImageEditPlusPipeline(**parts, processor=Reader(parts["tokenizer"])))
