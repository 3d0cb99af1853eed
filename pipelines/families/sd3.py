"""Stable Diffusion 3 and 3.5, text to image, image to image and with a ControlNet."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, FreeOrder, Guidance, Published, TokenGrid

_BATCHED = Guidance(
    form="batched", order=("uncond", "cond"), named=False, told_by={"skip_layers": "cond_without_layers"}
)

FAMILY = Family(
    name="sd3",
    title="Stable Diffusion 3 and 3.5",
    transformers=("SD3Transformer2DModel",),
    pipelines={
        "StableDiffusion3Pipeline": _BATCHED,
        "StableDiffusion3Img2ImgPipeline": _BATCHED,
        "StableDiffusion3ControlNetPipeline": _BATCHED,
    },
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("JointTransformerBlock",),
            streams=("encoder_hidden_states", "hidden_states"),
            attention=(
                AttentionSite("attn", "joint", "JointAttnProcessor2_0", dispatched=False),
                # In the first blocks of 3.5 medium, of the image alone.
                AttentionSite("attn2", "self", "JointAttnProcessor2_0", dispatched=False, optional=True),
            ),
            ends_text="context_pre_only",
        ),
    ),
    text="suffix",
    grid=TokenGrid("BCHW", patch=(None, "patch_size", "patch_size")),
    between_blocks="a ControlNet adds its residuals after the blocks",
    free_order=FreeOrder(
        unless_given={
            "block_controlnet_hidden_states": "a ControlNet adds residuals between blocks",
            "skip_layers": "layers are skipped, the last of them perhaps",
        }
    ),
    modules_to_not_convert=("pos_embed", "time_text_embed", "context_embedder", "norm_out", "proj_out"),
    modulation=("*.norm1.linear", "*.norm1_context.linear"),
    # 3.5 medium.
    published=Published("PISA, arXiv 2602.01077", density=0.3),
    notes=("skip-layer guidance calls a third time in some steps, without some of the blocks",),
)
