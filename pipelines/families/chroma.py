"""Chroma, text to image and image to image."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, Guidance, TokenGrid

_SEPARATE = Guidance(form="separate", order=("cond", "uncond"), named=False)
_ATTENTION = AttentionSite("attn", "joint", "FluxAttnProcessor", dispatched=True, added="attention_mask")

FAMILY = Family(
    name="chroma",
    title="Chroma",
    transformers=("ChromaTransformer2DModel",),
    pipelines={"ChromaPipeline": _SEPARATE, "ChromaImg2ImgPipeline": _SEPARATE},
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("ChromaTransformerBlock",),
            streams=("encoder_hidden_states", "hidden_states"),
            attention=(_ATTENTION,),
        ),
        BlockStack(
            path="single_transformer_blocks",
            blocks=("ChromaSingleTransformerBlock",),
            streams=("hidden_states",),
            attention=(_ATTENTION,),
            joined=True,
        ),
    ),
    text="prefix",
    grid=TokenGrid("BNC", ids="img_ids"),
    between_blocks="a ControlNet adds its residuals after the blocks of both stacks",
    modules_to_not_convert=(
        "x_embedder",
        "context_embedder",
        "time_text_embed",
        "distilled_guidance_layer",
        "norm_out",
        "proj_out",
    ),
    notes=(
        "one network outside of the blocks makes the modulation of all of them",
        "the padding of a text, but for its first token, is not hidden: pairs of tokens that count score one more",
    ),
)
