"""Sana, text to image, with linear attention."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, Guidance, TokenGrid

FAMILY = Family(
    name="sana",
    title="Sana",
    transformers=("SanaTransformer2DModel",),
    pipelines={"SanaPipeline": Guidance(form="batched", order=("uncond", "cond"), named=False)},
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("SanaTransformerBlock",),
            streams=("hidden_states",),
            attention=(
                AttentionSite("attn1", "linear", "SanaLinearAttnProcessor2_0", dispatched=False),
                AttentionSite(
                    "attn2", "cross", "SanaAttnProcessor2_0", dispatched=False, mask="encoder_attention_mask"
                ),
            ),
        ),
    ),
    text="cross",
    grid=TokenGrid("BCHW", patch=(None, "patch_size", "patch_size")),
    between_blocks="a ControlNet adds its residuals after the blocks",
    modules_to_not_convert=("patch_embed", "time_embed", "caption_projection", "proj_out"),
    remark="caches and quantization; its attention is linear",
    notes=("the feed-forward convolves over the grid, so that blocks need the tokens in the model's order",),
)
