"""Lumina Image 2.0, text to image."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, Guidance, TokenGrid

FAMILY = Family(
    name="lumina2",
    title="Lumina Image 2.0",
    transformers=("Lumina2Transformer2DModel",),
    pipelines={"Lumina2Pipeline": Guidance(form="separate", order=("cond", "uncond"), named=False)},
    stacks=(
        BlockStack(
            path="layers",
            blocks=("Lumina2TransformerBlock",),
            streams=("hidden_states",),
            attention=(
                AttentionSite("attn", "joint", "Lumina2AttnProcessor2_0", dispatched=False, mask="attention_mask"),
            ),
            joined=True,
        ),
    ),
    text="prefix",
    grid=TokenGrid("BCHW", patch=(None, "patch_size", "patch_size")),
    modules_to_not_convert=("x_embedder", "time_caption_embed", "context_refiner", "noise_refiner", "norm_out"),
    modulation=("*.norm1.linear",),
    notes=(
        "the refiners, two blocks for the text alone and two for the image alone, run in full before the others",
        "texts of several lengths in one batch put each image at another place, and sparse attention runs dense then",
    ),
)
