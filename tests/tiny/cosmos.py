"""Tiny Cosmos pipelines: 3 x 12 x 16 = 576 tokens from 5 frames of 48 x 64 pixels, as Wan's, in version 2; in version 1
2 x 16 x 16 = 512 from as many frames of 128 x 128, and a picture of version 2 24 x 24 = 576 from 96 x 96.

Without the channel that marks padded pixels, which diffusers makes with torchvision.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCosmos,
    Cosmos2TextToImagePipeline,
    Cosmos2VideoToWorldPipeline,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    CosmosVideoToWorldPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from tests.tiny import text
from tests.tiny.calls import GUIDED_VIDEO, PROMPTED, STEPS, noise
from tests.tiny.video import HEAD_SIZE, HEADS, TEXT_WIDTH, WAN_CHANNELS, wan_parts
from tests.tiny.weights import tiny

CHANNELS = 4


class Unguarded(ModelMixin, ConfigMixin):
    """In the place of the safety checker, which is a package of its own; finds everything safe."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("number", torch.randn(1))

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def _transformer(channels: int, **settings: Any) -> CosmosTransformer3DModel:
    model = CosmosTransformer3DModel(
        out_channels=channels,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        num_layers=4,
        mlp_ratio=2.0,
        text_embed_dim=HEADS * HEAD_SIZE,
        use_crossattn_projection=True,
        crossattn_proj_in_channels=TEXT_WIDTH,
        encoder_hidden_states_channels=HEADS * HEAD_SIZE,
        adaln_lora_dim=16,
        max_size=(8, 48, 48),
        concat_padding_mask=False,
        **settings,
    )
    for name, parameter in model.named_parameters():
        if "pos_emb" in name:
            torch.nn.init.normal_(parameter)
    return model


def _calm(build: Callable[..., Any]) -> Callable[..., Any]:
    """What the transformer and its first block say is small: it is asked at levels of noise that lie far apart."""

    @wraps(build)
    def calmer(seed: int = 0) -> Any:
        pipe = build(seed)
        with torch.no_grad():
            pipe.transformer.patch_embed.proj.weight.mul_(1.5)
            pipe.transformer.proj_out.weight.mul_(0.6)
        return pipe

    return calmer


@_calm
@tiny
def cosmos2_v2w() -> Cosmos2VideoToWorldPipeline:
    """Two calls per step that tell no branch, each with timesteps of its own: those of the given frame stand still."""
    parts = wan_parts(FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True))
    transformer = _transformer(WAN_CHANNELS, in_channels=WAN_CHANNELS + 1, extra_pos_embed_type=None)
    return Cosmos2VideoToWorldPipeline(**parts, transformer=transformer, safety_checker=Unguarded())


@_calm
@tiny
def cosmos2_t2i() -> Cosmos2TextToImagePipeline:
    """A picture as a film of one frame, with one timestep for all tokens."""
    parts = wan_parts(FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True))
    transformer = _transformer(WAN_CHANNELS, in_channels=WAN_CHANNELS, extra_pos_embed_type=None)
    return Cosmos2TextToImagePipeline(**parts, transformer=transformer, safety_checker=Unguarded())


def _first(in_channels: int) -> dict[str, Any]:
    tokenizer = text.t5_tokenizer()
    vae = AutoencoderKLCosmos(
        latent_channels=CHANNELS,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    scheduler = EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80, sigma_data=0.5, prediction_type="epsilon", final_sigmas_type="sigma_min"
    )
    return {
        "text_encoder": text.t5_encoder(tokenizer, TEXT_WIDTH),
        "tokenizer": tokenizer,
        "transformer": _transformer(CHANNELS, in_channels=in_channels),
        "vae": vae,
        "scheduler": scheduler,
        "safety_checker": Unguarded(),
    }


@tiny
def cosmos() -> CosmosTextToWorldPipeline:
    """One timestep for all tokens, and a learned position that every block adds."""
    return CosmosTextToWorldPipeline(**_first(CHANNELS))


@tiny
def cosmos_v2w() -> CosmosVideoToWorldPipeline:
    """The given frame gets noise of its own in each of the two calls, which the timestep alone tells to be one step."""
    return CosmosVideoToWorldPipeline(**_first(CHANNELS + 1))


_SHARED: dict[str, Any] = {
    "family": "cosmos",
    "stacks": ("transformer_blocks",),
    "text_tokens": 0,
    "forwards": {"transformer": 2 * STEPS},
}

CASES: tuple[dict[str, Any], ...] = (
    {
        **_SHARED,
        "name": "cosmos2_v2w",
        "build": cosmos2_v2w,
        "call": {**GUIDED_VIDEO, "image": noise(1, 3, 48, 64)},
        "tokens": 576,
        "fewest_steps": 2,
    },
)

_FIRST = {**_SHARED, "tokens": 512}
_CALL = {**GUIDED_VIDEO, "height": 128, "width": 128}

KIN: tuple[dict[str, Any], ...] = (
    {**_FIRST, "name": "cosmos", "build": cosmos, "call": _CALL},
    {
        **_SHARED,
        "name": "cosmos2_t2i",
        "build": cosmos2_t2i,
        "call": {**PROMPTED, "negative_prompt": "blurred", "guidance_scale": 5.0, "height": 96, "width": 96},
        "tokens": 576,
    },
    {**_FIRST, "name": "cosmos_v2w", "build": cosmos_v2w, "call": {**_CALL, "image": noise(1, 3, 128, 128)}},
)
