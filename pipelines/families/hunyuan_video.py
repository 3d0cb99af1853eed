"""HunyuanVideo, text or image to video."""

from accel.pipelines.facts import (
    AttentionSite,
    BlockStack,
    Family,
    FrameRate,
    FreeOrder,
    Guidance,
    Published,
    TokenArgument,
    TokenGrid,
)

_FIRST_FRAME_APART = (
    "HunyuanVideoTokenReplaceTransformerBlock",
    "HunyuanVideoTokenReplaceSingleTransformerBlock",
)
_ATTENTION = AttentionSite("attn", "joint", "HunyuanVideoAttnProcessor2_0", dispatched=True, mask="attention_mask")

FAMILY = Family(
    name="hunyuan_video",
    title="HunyuanVideo",
    transformers=("HunyuanVideoTransformer3DModel",),
    pipelines={
        "HunyuanVideoPipeline": Guidance(form="distilled", order=("cond", "uncond"), named=True),
        "HunyuanVideoImageToVideoPipeline": Guidance(form="distilled", order=("cond", "uncond"), named=False),
    },
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("HunyuanVideoTransformerBlock", _FIRST_FRAME_APART[0]),
            streams=("hidden_states", "encoder_hidden_states"),
            attention=(_ATTENTION,),
        ),
        BlockStack(
            path="single_transformer_blocks",
            blocks=("HunyuanVideoSingleTransformerBlock", _FIRST_FRAME_APART[1]),
            streams=("hidden_states", "encoder_hidden_states"),
            attention=(_ATTENTION,),
        ),
    ),
    text="suffix",
    grid=TokenGrid("BCTHW", patch=("patch_size_t", "patch_size", "patch_size")),
    frame_rate=FrameRate(24),
    free_order=FreeOrder(
        arguments=(TokenArgument("freqs_cis", axis=0), TokenArgument("image_rotary_emb", axis=0)),
        except_blocks=_FIRST_FRAME_APART,
    ),
    modules_to_not_convert=("x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"),
    modulation=("*.norm1.linear", "*.norm1_context.linear", "*.norm.linear"),
    # At 720p; 10 steps of 50.
    published=Published("PISA, arXiv 2602.01077", density=0.125, dense_steps=0.2, dense_layers=1),
    notes=("the text behind the video is padded; a key mask hides the padding",),
)
