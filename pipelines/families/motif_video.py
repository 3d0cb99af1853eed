"""MotifVideo, text or image to video."""

from accel.pipelines.facts import (
    PLAIN_GUIDERS,
    SKIPPING_GUIDERS,
    AttentionSite,
    BlockStack,
    Family,
    FrameRate,
    Guidance,
    TokenGrid,
)

_SEPARATE = Guidance(form="separate", order=("pred_cond", "pred_uncond"), named=True)
_STREAMS = ("hidden_states", "encoder_hidden_states")
_ATTENTION = (
    AttentionSite("attn", "joint", "MotifVideoAttnProcessor2_0", dispatched=True, mask="attention_mask"),
    AttentionSite(
        "cross_attn",
        "cross",
        "MotifVideoCrossAttnProcessor2_0",
        dispatched=True,
        mask="attention_mask",
        optional=True,
    ),
)

FAMILY = Family(
    name="motif_video",
    title="MotifVideo",
    transformers=("MotifVideoTransformer3DModel",),
    pipelines={"MotifVideoPipeline": _SEPARATE, "MotifVideoImage2VideoPipeline": _SEPARATE},
    stacks=(
        BlockStack("transformer_blocks", ("MotifVideoTransformerBlock",), _STREAMS, _ATTENTION),
        BlockStack("single_transformer_blocks", ("MotifVideoSingleTransformerBlock",), _STREAMS, _ATTENTION),
    ),
    text="suffix",
    grid=TokenGrid("BCTHW", patch=("patch_size_t", "patch_size", "patch_size")),
    frame_rate=FrameRate(24),
    between_blocks=(
        "the last `num_decoder_layers` blocks begin with the tokens as they were before the first block, and have the "
        "video that the others made in the place of the text"
    ),
    modules_to_not_convert=(
        "x_embedder",
        "image_embedder",
        "context_embedder",
        "time_text_embed",
        "norm_out",
        "proj_out",
    ),
    modulation=("*.norm1.linear", "*.norm1_context.linear", "*.norm.linear"),
    guiders=PLAIN_GUIDERS + SKIPPING_GUIDERS,
    notes=("in the last `num_decoder_layers` blocks, keys of the video that the others made are always attended to",),
)
