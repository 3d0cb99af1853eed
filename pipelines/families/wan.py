"""Wan 2.1 and 2.2, text, image or video to video, and VACE."""

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

_SEPARATE = Guidance(form="separate", order=("cond", "uncond"), named=True)
_ATTENTION = (
    AttentionSite("attn1", "self", "WanAttnProcessor", dispatched=True),
    AttentionSite("attn2", "cross", "WanAttnProcessor", dispatched=True),
)

FAMILY = Family(
    name="wan",
    title="Wan 2.1 and 2.2",
    tested=("random weights", "the built-in model"),
    transformers=("WanTransformer3DModel", "WanVACETransformer3DModel"),
    pipelines={
        "WanPipeline": _SEPARATE,
        "WanImageToVideoPipeline": _SEPARATE,
        "WanVideoToVideoPipeline": Guidance(form="separate", order=("cond", "uncond"), named=False),
        "WanVACEPipeline": _SEPARATE,
    },
    stacks=(BlockStack("blocks", ("WanTransformerBlock",), ("hidden_states",), _ATTENTION),),
    beside={
        "WanVACETransformer3DModel": (
            # They return the hint first, which is added to the main path.
            BlockStack(
                "vace_blocks",
                ("WanVACETransformerBlock",),
                ("control_hidden_states",),
                _ATTENTION,
                "vace_layers",
                ahead=1,
            ),
        )
    },
    text="cross",
    grid=TokenGrid("BCTHW", patch=("patch_size.0", "patch_size.1", "patch_size.2")),
    frame_rate=FrameRate(16, where={"expand_timesteps": 24}),  # 2.2 with 5B parameters has a timestep for each token
    denoisers=("transformer", "transformer_2"),
    between_blocks="VACE adds a hint after each block of `vace_layers`",
    free_order=FreeOrder(
        arguments=(TokenArgument("rotary_emb", axis=1),),
        unless_given={"control_hidden_states": "VACE adds hints between blocks"},
    ),
    modules_to_not_convert=(
        "patch_embedding",
        "vace_patch_embedding",
        "condition_embedder",
        "norm_out",
        "proj_out",
        # The ends of VACE's hints, which are added to the main path.
        "vace_blocks.*.proj_in",
        "vace_blocks.*.proj_out",
    ),
    per_token_timesteps=True,
    # Of dense steps it has 15 of 50 for 1.3B and 10 of 50 for 14B, and which of them runs is no fact of the family.
    published=Published("PISA, arXiv 2602.01077", density=0.125, dense_layers=1),
    remark="one or two transformers",
    notes=(
        "image to video with an image encoder: attention to text has keys of its own for the picture",
        "2.2: `transformer` has the noisy steps, `transformer_2` those after `boundary_ratio`",
        "VACE: `vace_blocks`, which make the hints, are always computed; their attention may be sparse",
    ),
)
