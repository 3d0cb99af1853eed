"""LTX-Video, text or image to video, and pictures or films at any frame."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, FreeOrder, Guidance, TokenArgument, TokenGrid

_PROCESSOR = "LTXVideoAttnProcessor"
_BATCHED = Guidance(form="batched", order=("uncond", "cond"), named=True)

FAMILY = Family(
    name="ltx",
    title="LTX-Video",
    transformers=("LTXVideoTransformer3DModel",),
    pipelines={"LTXPipeline": _BATCHED, "LTXImageToVideoPipeline": _BATCHED, "LTXConditionPipeline": _BATCHED},
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("LTXVideoTransformerBlock",),
            streams=("hidden_states",),
            attention=(
                AttentionSite("attn1", "self", _PROCESSOR, dispatched=True),
                AttentionSite(
                    "attn2", "cross", "LTXVideoAttnProcessor", dispatched=True, mask="encoder_attention_mask"
                ),
            ),
        ),
    ),
    text="cross",
    grid=TokenGrid("BNC", patch=("patch_size_t", "patch_size", "patch_size"), sizes=("num_frames", "height", "width")),
    free_order=FreeOrder(arguments=(TokenArgument("image_rotary_emb", axis=1),)),
    modules_to_not_convert=("proj_in", "time_embed", "caption_projection", "norm_out", "proj_out"),
    pixels=32,
    per_token_timesteps=True,
    notes=(
        "image to video: the tokens of the first frame have the timestep 0",
        "`LTXConditionPipeline` tells the coordinates of every token and no grid, so that sparse attention runs dense; "
        "what is given at a later frame is tokens before those of the video",
    ),
)
