"""Arguments that the calls of the tiny pipelines have in common."""

import torch
from PIL import Image

STEPS = 8
PROMPT = "a red fox"
TEXT_TOKENS = 24

PROMPTED = {
    "prompt": PROMPT,
    "num_inference_steps": STEPS,
    "max_sequence_length": TEXT_TOKENS,
    "output_type": "latent",
}
VIDEO = {**PROMPTED, "height": 48, "width": 64, "num_frames": 5}
GUIDED_VIDEO = {**VIDEO, "negative_prompt": "blurred", "guidance_scale": 5.0}
FROM_VIDEO = {name: value for name, value in GUIDED_VIDEO.items() if name != "num_frames"}
# For pipelines whose guidance is distilled.
TRUE_GUIDANCE = {"true_cfg_scale": 3.0, "negative_prompt": "blurred"}
# With an image encoder, Wan's attention to text takes what stands before the last 512 tokens for the picture; a few
# letters would not matter in so much padding.
LONG_TEXT = {"prompt": 16 * "a red fox, ", "negative_prompt": 16 * "blurred, ", "max_sequence_length": 512}


def noise(*shape: int) -> torch.Tensor:
    """A picture or film in 0..1, always the same of a shape."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


def picture(size: int) -> Image.Image:
    """A square picture, for pipelines that take no tensor."""
    return Image.fromarray((255 * noise(size, size, 3)).byte().numpy())
