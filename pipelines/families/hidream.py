"""HiDream-I1, text to image."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, Guidance, TokenGrid

_ATTENTION = AttentionSite("block.attn1", "joint", "HiDreamAttnProcessor", dispatched=False)

FAMILY = Family(
    name="hidream",
    title="HiDream-I1",
    transformers=("HiDreamImageTransformer2DModel",),
    pipelines={"HiDreamImagePipeline": Guidance(form="batched", order=("uncond", "cond"), named=False)},
    stacks=(
        BlockStack(
            path="double_stream_blocks",
            blocks=("HiDreamBlock",),
            streams=("hidden_states", "encoder_hidden_states"),
            attention=(_ATTENTION,),
        ),
        BlockStack(
            path="single_stream_blocks",
            blocks=("HiDreamBlock",),
            streams=("hidden_states",),
            attention=(_ATTENTION,),
            joined=True,
        ),
    ),
    text="suffix",
    grid=TokenGrid("BCHW", patch=(None, "patch_size", "patch_size")),
    named={"timestep": "timesteps"},
    between_blocks="behind each block the last part of the text gives way to what the next layer of Llama says of it",
    modules_to_not_convert=(
        "t_embedder",
        "p_embedder",
        "x_embedder",
        "caption_projection",
        "final_layer",
    ),
    modulation=("*.adaLN_modulation.1",),
    notes=(
        "the feed-forwards of the image send each token to some of their experts, by a gate that is not quantized",
        "a picture that is no square is filled up to the most tokens that the model takes; in dual blocks sparse "
        "attention runs dense then, and in single ones what fills it counts as text",
    ),
)
