"""Tiny image pipelines: FLUX (plain, with a ControlNet, a picture in channels of its own), DiT, Stable Diffusion 3.

Their autoencoders do not compress, so few pixels make enough tokens. Every builder takes `seed`, default 0.
"""

import warnings
from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
)

from tests.tiny import text
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE = 2, 64
TEXT_WIDTH = 32
CHANNELS = 4
IMAGE_SIZE = 48

FLUX_SHAPE: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 4 * CHANNELS,
    "attention_head_dim": HEAD_SIZE,
    "num_attention_heads": HEADS,
    "joint_attention_dim": TEXT_WIDTH,
    "pooled_projection_dim": TEXT_WIDTH,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 24, 24],
}


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5,
        shift_factor=0.06,
    )


def _flux_parts(**shape: Any) -> dict[str, Any]:
    tokenizer, tokenizer_2 = text.clip_tokenizer(), text.t5_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": text.clip_encoder(tokenizer, TEXT_WIDTH),
        "tokenizer_2": tokenizer_2,
        "text_encoder_2": text.t5_encoder(tokenizer_2, TEXT_WIDTH),
        "vae": _autoencoder(),
        "transformer": FluxTransformer2DModel(**{**FLUX_SHAPE, **shape}, num_layers=3, num_single_layers=3),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


@tiny
def flux() -> FluxPipeline:
    """Distilled guidance (one call per step), text first, three dual and three single blocks."""
    return FluxPipeline(**_flux_parts())


@tiny
def flux_controlnet() -> FluxControlNetPipeline:
    """FLUX with the residuals of a ControlNet added after every block of both stacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
        controlnet = FluxControlNetModel(**FLUX_SHAPE, num_layers=2, num_single_layers=2)
    return FluxControlNetPipeline(**_flux_parts(), controlnet=controlnet)


@tiny
def flux_control() -> FluxControlPipeline:
    """The picture to go by in channels beside those of the image."""
    return FluxControlPipeline(**_flux_parts(in_channels=8 * CHANNELS, out_channels=4 * CHANNELS))


@tiny
def flux_fill() -> FluxFillPipeline:
    """The picture with its hole in channels beside those of the image, and the hole in four more."""
    return FluxFillPipeline(**_flux_parts(in_channels=8 * CHANNELS + 4, out_channels=4 * CHANNELS))


@tiny
def dit() -> DiTPipeline:
    """Class labels, batched guidance in the order [cond, null], no text, always decoded."""
    transformer = DiTTransformer2DModel(
        sample_size=IMAGE_SIZE,
        patch_size=2,
        num_layers=4,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_embeds_ada_norm=1000,
    )
    # An untrained model that predicts noise would blow the latents up; predicting the velocity, it does not.
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    return DiTPipeline(transformer=transformer, vae=_autoencoder(), scheduler=scheduler)


_SD3_SHAPE: dict[str, Any] = {
    "sample_size": IMAGE_SIZE,
    "patch_size": 2,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_SIZE,
    "joint_attention_dim": 2 * TEXT_WIDTH,
    "caption_projection_dim": HEADS * HEAD_SIZE,
    "pooled_projection_dim": 2 * TEXT_WIDTH,
}


def _sd3_parts(scheduler: Any, **shape: Any) -> dict[str, Any]:
    tokenizer, tokenizer_3 = text.clip_tokenizer(max_length=16), text.t5_tokenizer()
    transformer = SD3Transformer2DModel(**_SD3_SHAPE, num_layers=4, **shape)
    return {
        "tokenizer": tokenizer,
        "text_encoder": text.projected_clip_encoder(tokenizer, TEXT_WIDTH),
        "tokenizer_2": tokenizer,
        "text_encoder_2": text.projected_clip_encoder(tokenizer, TEXT_WIDTH),
        "tokenizer_3": tokenizer_3,
        "text_encoder_3": text.t5_encoder(tokenizer_3, 2 * TEXT_WIDTH),
        "vae": _autoencoder(),
        "transformer": transformer,
        "scheduler": scheduler,
    }


@tiny
def sd3_heun() -> StableDiffusion3Pipeline:
    """Batched guidance, image first, and a scheduler that calls twice in every step but the last."""
    return StableDiffusion3Pipeline(**_sd3_parts(FlowMatchHeunDiscreteScheduler()))


@tiny
def sd35() -> StableDiffusion3Pipeline:
    """As 3.5 medium: normalized queries and keys, and a second attention, to the image alone, in the first blocks."""
    return StableDiffusion3Pipeline(
        **_sd3_parts(FlowMatchEulerDiscreteScheduler(), qk_norm="rms_norm", dual_attention_layers=(0, 1))
    )


@tiny
def sd3_controlnet() -> StableDiffusion3ControlNetPipeline:
    """Stable Diffusion 3 with the residuals of a ControlNet added after the blocks."""
    controlnet = SD3ControlNetModel(**_SD3_SHAPE, num_layers=2)
    return StableDiffusion3ControlNetPipeline(**_sd3_parts(FlowMatchEulerDiscreteScheduler()), controlnet=controlnet)
