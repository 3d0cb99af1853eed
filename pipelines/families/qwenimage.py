"""QwenImage, text to image, image to image, with a ControlNet, and editing."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, FreeOrder, Guidance, TokenArgument, TokenGrid

_SEPARATE = Guidance(form="separate", order=("cond", "uncond"), named=True)

FAMILY = Family(
    name="qwenimage",
    title="QwenImage",
    transformers=("QwenImageTransformer2DModel",),
    pipelines={
        "QwenImagePipeline": _SEPARATE,
        "QwenImageImg2ImgPipeline": _SEPARATE,
        "QwenImageControlNetPipeline": _SEPARATE,
        "QwenImageEditPipeline": _SEPARATE,
        "QwenImageEditPlusPipeline": _SEPARATE,
    },
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("QwenImageTransformerBlock",),
            streams=("encoder_hidden_states", "hidden_states"),
            attention=(
                AttentionSite(
                    "attn",
                    "joint",
                    "QwenDoubleStreamAttnProcessor2_0",
                    dispatched=True,
                    mask="encoder_hidden_states_mask",
                ),
            ),
        ),
    ),
    text="prefix",
    grid=TokenGrid("BNC", shapes="img_shapes"),
    between_blocks="a ControlNet adds its residuals after the blocks",
    free_order=FreeOrder(
        arguments=(TokenArgument("image_rotary_emb", axis=0, first_alone=True),),
        unless_given={"controlnet_block_samples": "a ControlNet adds residuals between blocks"},
    ),
    modules_to_not_convert=("img_in", "txt_in", "time_text_embed", "norm_out", "proj_out"),
    modulation=("*.img_mod.1", "*.txt_mod.1"),
    notes=(
        "texts of several lengths in one batch are padded on the right; a key mask hides the padding",
        "editing: pictures are tokens behind those of the image, and sparse attention runs dense then",
    ),
)
