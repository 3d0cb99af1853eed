"""A tiny pipeline of a family that Accel does not know: Stable Diffusion, whose denoiser is no transformer."""

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from tests.tiny import text
from tests.tiny.weights import tiny

TEXT_WIDTH = 32
CHANNELS = 4


@tiny
def stable_diffusion() -> StableDiffusionPipeline:
    """Text to image with a U-Net."""
    tokenizer = text.clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=24,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.clip_encoder(tokenizer, TEXT_WIDTH),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
