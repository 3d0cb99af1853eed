"""HunyuanVideo 1.5, text or image to video."""

from accel.pipelines.facts import (
    PLAIN_GUIDERS,
    SKIPPING_GUIDERS,
    AttentionSite,
    BlockStack,
    Family,
    FrameRate,
    FreeOrder,
    Guidance,
    TokenArgument,
    TokenGrid,
)

_SEPARATE = Guidance(form="separate", order=("pred_cond", "pred_uncond"), named=True)

FAMILY = Family(
    name="hunyuan_video15",
    title="HunyuanVideo 1.5",
    transformers=("HunyuanVideo15Transformer3DModel",),
    pipelines={"HunyuanVideo15Pipeline": _SEPARATE, "HunyuanVideo15ImageToVideoPipeline": _SEPARATE},
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("HunyuanVideo15TransformerBlock",),
            streams=("hidden_states", "encoder_hidden_states"),
            attention=(
                AttentionSite(
                    "attn", "joint", "HunyuanVideo15AttnProcessor2_0", dispatched=True, mask="attention_mask"
                ),
            ),
        ),
    ),
    text="suffix",
    grid=TokenGrid("BCTHW", patch=("patch_size_t", "patch_size", "patch_size")),
    frame_rate=FrameRate(24),
    free_order=FreeOrder(arguments=(TokenArgument("freqs_cis", axis=0),)),
    modules_to_not_convert=(
        "x_embedder",
        "image_embedder",
        "context_embedder",
        "context_embedder_2",
        "time_embed",
        "norm_out",
        "proj_out",
    ),
    modulation=("*.norm1.linear", "*.norm1_context.linear"),
    guiders=PLAIN_GUIDERS + SKIPPING_GUIDERS,
    notes=("the text is a picture, letters and words, those that count first; a mask hides the others",),
)
