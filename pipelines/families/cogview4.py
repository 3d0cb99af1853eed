"""CogView4, text to image."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, FreeOrder, Guidance, TokenArgument, TokenGrid

FAMILY = Family(
    name="cogview4",
    title="CogView4",
    transformers=("CogView4Transformer2DModel",),
    pipelines={
        "CogView4Pipeline": Guidance(form="separate", order=("cond", "uncond"), named=True),
        "CogView4ControlPipeline": Guidance(form="separate", order=("cond", "uncond"), named=False),
    },
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("CogView4TransformerBlock",),
            streams=("hidden_states", "encoder_hidden_states"),
            attention=(
                AttentionSite("attn1", "joint", "CogView4AttnProcessor", dispatched=False, mask="attention_mask"),
            ),
        ),
    ),
    text="prefix",
    grid=TokenGrid("BCHW", patch=(None, "patch_size", "patch_size")),
    free_order=FreeOrder(arguments=(TokenArgument("image_rotary_emb", axis=0),)),
    modules_to_not_convert=("patch_embed", "time_condition_embed", "norm_out", "proj_out"),
    modulation=("*.norm1.linear",),
    pixels=16,
    notes=(
        "texts are padded on the left to multiples of 16 tokens, and the padding takes part as all other tokens do",
    ),
)
