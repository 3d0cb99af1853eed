"""Mochi, text to video."""

from accel.pipelines.facts import (
    AttentionSite,
    BlockStack,
    Family,
    FrameRate,
    FreeOrder,
    Guidance,
    TokenArgument,
    TokenGrid,
)

FAMILY = Family(
    name="mochi",
    title="Mochi",
    transformers=("MochiTransformer3DModel",),
    pipelines={"MochiPipeline": Guidance(form="batched", order=("uncond", "cond"), named=True)},
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("MochiTransformerBlock",),
            streams=("hidden_states", "encoder_hidden_states"),
            attention=(
                AttentionSite(
                    "attn1", "joint", "MochiAttnProcessor2_0", dispatched=False, mask="encoder_attention_mask"
                ),
            ),
        ),
    ),
    text="suffix",
    grid=TokenGrid("BCTHW", patch=(None, "patch_size", "patch_size")),
    frame_rate=FrameRate(30),
    free_order=FreeOrder(arguments=(TokenArgument("image_rotary_emb", axis=0),)),
    modules_to_not_convert=("patch_embed", "time_embed", "norm_out", "proj_out"),
    modulation=("*.norm1.linear", "*.norm1_context.linear", "*.norm1_context.linear_1"),
    notes=(
        "padded text is cut off before attention, sample by sample, which keeps compiled blocks from being one graph",
        "the last block returns the text as it was given it",
    ),
)
