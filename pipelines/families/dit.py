"""DiT, class to image."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, FreeOrder, Guidance, TokenGrid

FAMILY = Family(
    name="dit",
    title="DiT",
    transformers=("DiTTransformer2DModel",),
    pipelines={"DiTPipeline": Guidance(form="batched", order=("cond", "uncond"), named=False)},
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("BasicTransformerBlock",),
            streams=("hidden_states",),
            attention=(AttentionSite("attn1", "self", "AttnProcessor2_0", dispatched=False),),
        ),
    ),
    text="none",
    grid=TokenGrid("BCHW", patch=(None, "patch_size", "patch_size")),
    free_order=FreeOrder(),
    # Every block has an embedder of the timestep and the class of its own.
    modules_to_not_convert=("pos_embed", "proj_out_1", "proj_out_2", "*.norm1.emb"),
    modulation=("*.norm1.linear",),
    notes=("the pipeline overwrites the second half of the latents with the first at each step",),
)
