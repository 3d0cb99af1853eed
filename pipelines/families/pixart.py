"""PixArt-alpha and PixArt-sigma, text to image."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, FreeOrder, Guidance, TokenGrid

_BATCHED = Guidance(form="batched", order=("uncond", "cond"), named=False)

FAMILY = Family(
    name="pixart",
    title="PixArt-alpha and PixArt-sigma",
    transformers=("PixArtTransformer2DModel",),
    pipelines={"PixArtAlphaPipeline": _BATCHED, "PixArtSigmaPipeline": _BATCHED},
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("BasicTransformerBlock",),
            streams=("hidden_states",),
            attention=(
                AttentionSite("attn1", "self", "AttnProcessor2_0", dispatched=False, mask="attention_mask"),
                AttentionSite("attn2", "cross", "AttnProcessor2_0", dispatched=False, mask="encoder_attention_mask"),
            ),
        ),
    ),
    text="cross",
    grid=TokenGrid("BCHW", patch=(None, "patch_size", "patch_size")),
    # The pipelines give no mask over the image's own tokens; one that is given is made for the model's order.
    free_order=FreeOrder(),
    modules_to_not_convert=("pos_embed", "adaln_single", "caption_projection", "proj_out"),
)
