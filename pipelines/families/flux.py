"""FLUX.1, text to image, image to image, with a ControlNet, and those that fill, change or go by a picture."""

from accel.pipelines.facts import (
    AttentionSite,
    BlockStack,
    Family,
    FreeOrder,
    Guidance,
    Published,
    TokenArgument,
    TokenGrid,
)

_STREAMS = ("encoder_hidden_states", "hidden_states")
_ATTENTION = AttentionSite("attn", "joint", "FluxAttnProcessor", dispatched=True)
_RESIDUALS = "a ControlNet adds residuals between blocks"
_UNNAMED = Guidance(form="distilled", order=("cond", "uncond"), named=False)

FAMILY = Family(
    name="flux",
    title="FLUX.1",
    transformers=("FluxTransformer2DModel",),
    pipelines={
        "FluxPipeline": Guidance(form="distilled", order=("cond", "uncond"), named=True),
        "FluxImg2ImgPipeline": _UNNAMED,
        "FluxControlNetPipeline": _UNNAMED,
        "FluxKontextPipeline": _UNNAMED,
        "FluxFillPipeline": _UNNAMED,
        "FluxControlPipeline": _UNNAMED,
        "FluxInpaintPipeline": _UNNAMED,
    },
    stacks=(
        BlockStack("transformer_blocks", ("FluxTransformerBlock",), _STREAMS, (_ATTENTION,)),
        BlockStack("single_transformer_blocks", ("FluxSingleTransformerBlock",), _STREAMS, (_ATTENTION,)),
    ),
    text="prefix",
    grid=TokenGrid("BNC", ids="img_ids"),
    between_blocks="a ControlNet adds its residuals after the blocks of both stacks",
    free_order=FreeOrder(
        arguments=(TokenArgument("image_rotary_emb", axis=0, with_text=True),),
        unless_given={"controlnet_block_samples": _RESIDUALS, "controlnet_single_block_samples": _RESIDUALS},
    ),
    modules_to_not_convert=("x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"),
    modulation=("*.norm1.linear", "*.norm1_context.linear", "*.norm.linear"),
    # At 1024x1024.
    published=Published("PISA, arXiv 2602.01077", density=0.15, dense_steps=0.0, dense_layers=4),
    notes=(
        "Kontext: the picture to change is tokens behind those of the image, and sparse attention runs dense then",
        "Fill and Control: the picture is in channels of the image's own tokens",
    ),
)
