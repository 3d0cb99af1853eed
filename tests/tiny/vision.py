"""Image encoders of two layers for the tiny pipelines that begin with a picture.

The builders draw from the global random state: call them inside `weights.seeded`.
"""

from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.tiny import text

HEADS, FEED_FORWARD, LAYERS = 4, 48, 2
IMAGE_SIZE, PATCH = 16, 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH) ** 2
SIGLIP_TOKENS = IMAGE_TOKENS
IMAGE, HEADER_END = "<image>", "<|end_header_id|>"


def clip_image_processor() -> CLIPImageProcessor:
    """For pictures in 0..1."""
    return CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_rescale=False
    )


def _clip_config(width: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=FEED_FORWARD,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
    )


def clip_vision_encoder(width: int) -> CLIPVisionModel:
    """Makes (IMAGE_SIZE / PATCH)² + 1 = 5 tokens."""
    return CLIPVisionModel(_clip_config(width))


def llava_tokenizer() -> LlamaTokenizer:
    """Characters, and the marks of a picture and of the parts of a talk."""
    tokenizer = text.llama_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE, HEADER_END]})
    return tokenizer


def llava_encoder(tokenizer: LlamaTokenizer, width: int) -> LlavaForConditionalGeneration:
    """Reads a picture as four tokens, in the place of the mark."""
    config = LlavaConfig(
        vision_config=_clip_config(width),
        text_config=text.llama_config(tokenizer, width),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaForConditionalGeneration(config)


def siglip_processor() -> SiglipImageProcessor:
    return SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


def siglip_config(width: int) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=FEED_FORWARD,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
    )


def siglip_encoder(width: int) -> SiglipVisionModel:
    """Makes four tokens."""
    return SiglipVisionModel(siglip_config(width))
