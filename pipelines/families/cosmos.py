"""Cosmos 1 and 2, text, image or video to video, and text to image."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, FreeOrder, Guidance, TokenArgument, TokenGrid

_SEPARATE = Guidance(form="separate", order=("cond", "uncond"), named=False)
_PROCESSOR = "CosmosAttnProcessor2_0"

FAMILY = Family(
    name="cosmos",
    title="Cosmos 1 and 2",
    transformers=("CosmosTransformer3DModel",),
    pipelines={
        "CosmosTextToWorldPipeline": _SEPARATE,
        "CosmosVideoToWorldPipeline": _SEPARATE,
        "Cosmos2VideoToWorldPipeline": _SEPARATE,
        "Cosmos2TextToImagePipeline": _SEPARATE,
    },
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("CosmosTransformerBlock",),
            streams=("hidden_states",),
            attention=(
                AttentionSite("attn1", "self", _PROCESSOR, dispatched=True),
                AttentionSite("attn2", "cross", _PROCESSOR, dispatched=True, mask="attention_mask"),
            ),
        ),
    ),
    text="cross",
    grid=TokenGrid("BCTHW", patch=("patch_size.0", "patch_size.1", "patch_size.2")),
    free_order=FreeOrder(
        arguments=(TokenArgument("image_rotary_emb", axis=0), TokenArgument("extra_pos_emb", axis=1)),
        unless_given={"block_controlnet_hidden_states": "a ControlNet adds residuals between blocks"},
    ),
    modules_to_not_convert=("patch_embed", "time_embed", "crossattn_proj", "norm_out", "proj_out"),
    modulation=("*.norm1.linear_*", "*.norm2.linear_*", "*.norm3.linear_*"),
    pixels=16,
    per_token_timesteps=True,
    remark="diffusers wants a safety checker for them, and torchvision",
    notes=(
        "the pipelines want a safety checker (`cosmos_guardrail`) and, for the mask of the padding, torchvision",
        "2, video to world: the tokens of the given frames have a timestep of their own",
    ),
)
