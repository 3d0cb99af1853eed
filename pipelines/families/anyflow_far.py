"""AnyFlow-FAR, text, image or video to video, chunk by chunk."""

from accel.pipelines.facts import AttentionSite, BlockStack, CallMarks, Chunks, Family, FrameRate, Guidance, TokenGrid

FAMILY = Family(
    name="anyflow_far",
    title="AnyFlow-FAR",
    transformers=("AnyFlowFARTransformer3DModel",),
    pipelines={"AnyFlowFARPipeline": Guidance(form="batched", order=("uncond", "cond"), named=False)},
    stacks=(
        BlockStack(
            path="blocks",
            blocks=("AnyFlowTransformerBlock",),
            streams=("hidden_states",),
            attention=(
                AttentionSite("attn1", "chunk", "AnyFlowCausalAttnProcessor", dispatched=True),
                AttentionSite("attn2", "cross", "AnyFlowCrossAttnProcessor", dispatched=True),
            ),
        ),
    ),
    text="cross",
    grid=TokenGrid("BTCHW", patch=("patch_size.0", "patch_size.1", "patch_size.2")),
    frame_rate=FrameRate(16),
    modules_to_not_convert=("patch_embedding", "far_patch_embedding", "condition_embedder", "norm_out", "proj_out"),
    chunks=Chunks(argument="kv_cache_flag", done="num_cached_chunks", filling="is_cache_step"),
    marks=CallMarks(start="prepare_latents", steps="num_timesteps"),
    per_token_timesteps=True,
    remark="chunk by chunk",
    notes=(
        "every frame has a timestep of its own in a call; those of the chunk that is made are equal",
        "keys of earlier chunks are kept before their rotation; far ones are those of a coarser patch",
        "queries and keys are padded with zeros to a multiple of 128, and the zero keys take part in the softmax",
    ),
)
