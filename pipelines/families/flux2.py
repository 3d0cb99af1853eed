"""FLUX.2, and its smaller Klein, text to image with or without pictures to go by."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, Guidance, TokenGrid

FAMILY = Family(
    name="flux2",
    title="FLUX.2",
    transformers=("Flux2Transformer2DModel",),
    pipelines={
        "Flux2Pipeline": Guidance(form="distilled", order=("cond", "uncond"), named=False),
        "Flux2KleinPipeline": Guidance(form="separate", order=("cond", "uncond"), named=True),
    },
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("Flux2TransformerBlock",),
            streams=("encoder_hidden_states", "hidden_states"),
            attention=(AttentionSite("attn", "joint", "Flux2AttnProcessor", dispatched=True),),
        ),
        BlockStack(
            path="single_transformer_blocks",
            blocks=("Flux2SingleTransformerBlock",),
            streams=("hidden_states",),
            attention=(AttentionSite("attn", "joint", "Flux2ParallelSelfAttnProcessor", dispatched=True),),
            joined=True,
        ),
    ),
    text="prefix",
    grid=TokenGrid("BNC", ids="img_ids"),
    modules_to_not_convert=(
        "x_embedder",
        "context_embedder",
        "time_guidance_embed",
        "double_stream_modulation_img",
        "double_stream_modulation_txt",
        "single_stream_modulation",
        "norm_out",
        "proj_out",
    ),
    notes=(
        "all blocks of a kind share their modulation, which the parent computes",
        "pictures to go by are tokens behind those of the image, and sparse attention runs dense then",
    ),
)
