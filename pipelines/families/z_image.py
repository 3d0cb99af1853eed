"""Z-Image and its Turbo, text to image and image to image."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, Guidance, TokenGrid

_BATCHED = Guidance(form="batched", order=("cond", "uncond"), named=False)

FAMILY = Family(
    name="z_image",
    title="Z-Image",
    transformers=("ZImageTransformer2DModel",),
    pipelines={"ZImagePipeline": _BATCHED, "ZImageImg2ImgPipeline": _BATCHED},
    stacks=(
        BlockStack(
            path="layers",
            blocks=("ZImageTransformerBlock",),
            streams=("hidden_states",),
            attention=(
                AttentionSite("attention", "joint", "ZSingleStreamAttnProcessor", dispatched=True, mask="attn_mask"),
            ),
            joined=True,
            named={"hidden_states": "x"},
        ),
    ),
    text="suffix",
    grid=TokenGrid("BC1HW", patch=(None, "all_patch_size.0", "all_patch_size.0")),
    named={"hidden_states": "x", "timestep": "t"},
    between_blocks="a ControlNet adds its residuals after the blocks",
    modules_to_not_convert=(
        "all_x_embedder",
        "all_final_layer",
        "t_embedder",
        "cap_embedder",
        "context_refiner",
        "noise_refiner",
    ),
    modulation=("*.adaLN_modulation.0",),
    notes=(
        "the refiners, two blocks for the text alone and two for the image alone, run in full before the others",
        "image and text are filled up to multiples of 32 tokens each; what fills the image counts as text",
    ),
)
