"""HunyuanVideo, text to video."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, Guidance, TokenGrid

_ATTENTION = AttentionSite("attn", "joint", "HunyuanVideoAttnProcessor2_0", dispatched=True, mask="attention_mask")

FAMILY = Family(
    name="hunyuan_video",
    title="HunyuanVideo",
    transformers=("HunyuanVideoTransformer3DModel",),
    pipelines={"HunyuanVideoPipeline": Guidance(form="distilled", order=("cond", "uncond"), named=True)},
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("HunyuanVideoTransformerBlock", "HunyuanVideoTokenReplaceTransformerBlock"),
            streams=("hidden_states", "encoder_hidden_states"),
            attention=(_ATTENTION,),
        ),
        BlockStack(
            path="single_transformer_blocks",
            blocks=("HunyuanVideoSingleTransformerBlock", "HunyuanVideoTokenReplaceSingleTransformerBlock"),
            streams=("hidden_states", "encoder_hidden_states"),
            attention=(_ATTENTION,),
        ),
    ),
    text="suffix",
    grid=TokenGrid("BCTHW", patch=("patch_size_t", "patch_size", "patch_size")),
    modules_to_not_convert=("x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"),
    notes=("the text behind the video is padded; a key mask hides the padding",),
)
