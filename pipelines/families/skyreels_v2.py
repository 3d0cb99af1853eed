"""SkyReels-V2, text or image to video, and diffusion forcing."""

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

_SEPARATE = Guidance(form="separate", order=("cond", "uncond"), named=True)

FAMILY = Family(
    name="skyreels_v2",
    title="SkyReels-V2",
    transformers=("SkyReelsV2Transformer3DModel",),
    pipelines={
        "SkyReelsV2Pipeline": _SEPARATE,
        "SkyReelsV2ImageToVideoPipeline": _SEPARATE,
        "SkyReelsV2DiffusionForcingPipeline": _SEPARATE,
        "SkyReelsV2DiffusionForcingImageToVideoPipeline": _SEPARATE,
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline": _SEPARATE,
    },
    stacks=(
        BlockStack(
            path="blocks",
            blocks=("SkyReelsV2TransformerBlock",),
            streams=("hidden_states",),
            attention=(
                AttentionSite("attn1", "self", "SkyReelsV2AttnProcessor", dispatched=True, mask="attention_mask"),
                AttentionSite("attn2", "cross", "SkyReelsV2AttnProcessor", dispatched=True),
            ),
        ),
    ),
    text="cross",
    grid=TokenGrid("BCTHW", patch=("patch_size.0", "patch_size.1", "patch_size.2")),
    frame_rate=FrameRate(24),
    free_order=FreeOrder(arguments=(TokenArgument("rotary_emb", axis=1),)),
    modules_to_not_convert=(
        "patch_embedding",
        "condition_embedder",
        "fps_embedding",
        "fps_projection",
        "norm_out",
        "proj_out",
    ),
    per_token_timesteps=True,
    notes=(
        "diffusion forcing: every frame has a timestep of its own, and a long video is several runs",
        "with causal blocks of several frames a mask binds every query, and sparse attention leaves all calls dense",
    ),
)
