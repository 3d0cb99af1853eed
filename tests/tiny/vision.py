"""Image encoders of two layers for the tiny pipelines that begin with a picture.

The builders draw from the global random state: call them inside `weights.seeded`.
"""

from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

HEADS, FEED_FORWARD, LAYERS = 4, 48, 2
IMAGE_SIZE, PATCH = 16, 8


def clip_image_processor() -> CLIPImageProcessor:
    """For pictures in 0..1."""
    return CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_rescale=False
    )


def clip_vision_encoder(width: int) -> CLIPVisionModel:
    """Makes (IMAGE_SIZE / PATCH)² + 1 = 5 tokens."""
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=FEED_FORWARD,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
    )
    return CLIPVisionModel(config)
