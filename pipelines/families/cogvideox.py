"""CogVideoX and 1.5, text, image or video to video."""

from accel.pipelines.facts import (
    AttentionSite,
    BlockStack,
    Family,
    FrameRate,
    FreeOrder,
    Guidance,
    TokenArgument,
    TokenGrid,
)

_BATCHED = Guidance(form="batched", order=("uncond", "cond"), named=True)

FAMILY = Family(
    name="cogvideox",
    title="CogVideoX and 1.5",
    transformers=("CogVideoXTransformer3DModel",),
    pipelines={
        "CogVideoXPipeline": _BATCHED,
        "CogVideoXImageToVideoPipeline": _BATCHED,
        "CogVideoXVideoToVideoPipeline": _BATCHED,
    },
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("CogVideoXBlock",),
            streams=("hidden_states", "encoder_hidden_states"),
            attention=(AttentionSite("attn1", "joint", "CogVideoXAttnProcessor2_0", dispatched=False),),
        ),
    ),
    text="prefix",
    grid=TokenGrid("BTCHW", patch=("patch_size_t", "patch_size", "patch_size")),
    frame_rate=FrameRate(8, where={"patch_size_t": 16}),  # 1.5 has patches over time
    free_order=FreeOrder(arguments=(TokenArgument("image_rotary_emb", axis=0),)),
    modules_to_not_convert=("patch_embed", "time_embedding", "ofs_embedding", "norm_out", "proj_out"),
    modulation=("*.norm1.linear", "*.norm2.linear"),
)
