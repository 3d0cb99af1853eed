"""Tiny LTX-2 pipelines: 2 x 16 x 16 = 512 video tokens from 5 frames of 64 x 64 pixels, and those of their sound."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

from tests.tiny import text
from tests.tiny.calls import GUIDED_VIDEO, picture
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE, AUDIO_HEAD_SIZE = 2, 64, 32
TEXT_WIDTH = 32
CHANNELS, AUDIO_CHANNELS, MEL_BINS = 8, 2, 8
SIZE = 64


def _parts(**transformer: Any) -> dict[str, Any]:
    tokenizer = text.llama_tokenizer()
    encoder = text.llama_encoder(tokenizer, TEXT_WIDTH)
    model = LTX2VideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        cross_attention_dim=HEADS * HEAD_SIZE,
        audio_in_channels=AUDIO_CHANNELS * MEL_BINS // 4,
        audio_out_channels=AUDIO_CHANNELS * MEL_BINS // 4,
        audio_num_attention_heads=HEADS,
        audio_attention_head_dim=AUDIO_HEAD_SIZE,
        audio_cross_attention_dim=HEADS * AUDIO_HEAD_SIZE,
        num_layers=4,
        caption_channels=TEXT_WIDTH,
        **transformer,
    )
    vae = AutoencoderKLLTX2Video(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        downsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=1,
    )
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=AUDIO_CHANNELS,
        mel_bins=MEL_BINS,
    )
    vocoder = LTX2Vocoder(
        in_channels=AUDIO_CHANNELS * MEL_BINS,
        hidden_channels=32,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "vae": vae,
        "audio_vae": audio_vae,
        "connectors": LTX2TextConnectors(
            caption_channels=TEXT_WIDTH,
            text_proj_in_factor=encoder.config.num_hidden_layers + 1,
            video_connector_num_attention_heads=4,
            video_connector_attention_head_dim=TEXT_WIDTH // 4,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=None,
            audio_connector_num_attention_heads=4,
            audio_connector_attention_head_dim=TEXT_WIDTH // 4,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None,
        ),
        "transformer": model,
        "vocoder": vocoder,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def _softly(build: Callable[..., Any]) -> Callable[..., Any]:
    """The gate of the sound so far shut that it does not drown the video, as it would with weights drawn anew."""

    @wraps(build)
    def softer(seed: int = 0) -> Any:
        pipe = build(seed)
        with torch.no_grad():
            pipe.transformer.av_cross_attn_video_a2v_gate.linear.weight.mul_(0.3)
            for block in pipe.transformer.transformer_blocks:
                block.video_a2v_cross_attn_scale_shift_table.mul_(0.3)
        return pipe

    return softer


@_softly
@tiny
def ltx2() -> LTX2Pipeline:
    """As 2.3, but for the projection of the text: batched guidance, gates, and attention that guidance may perturb."""
    gates = dict.fromkeys(("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod"), True)
    return LTX2Pipeline(**_parts(**gates, perturbed_attn=True, rope_type="split"))


@_softly
@tiny
def ltx2_i2v() -> LTX2ImageToVideoPipeline:
    """2.0: no gates, the other rotation and the other processor; the first frame is given."""
    return LTX2ImageToVideoPipeline(**_parts())


_SHARED: dict[str, Any] = {
    "family": "ltx2",
    "stacks": ("transformer_blocks",),
    "tokens": 512,
    "text_tokens": 0,
    "smaller": 32,
    # That of the sound is another.
    "other_guidance": {"guidance_scale": 1.0, "audio_guidance_scale": 1.0},
}
_CALL = {
    **GUIDED_VIDEO,
    "height": SIZE,
    "width": SIZE,
    "guidance_scale": 3.0,
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
}

CASES: tuple[dict[str, Any], ...] = ({**_SHARED, "name": "ltx2", "build": ltx2, "call": _CALL},)

KIN: tuple[dict[str, Any], ...] = (
    {**_SHARED, "name": "ltx2_i2v", "build": ltx2_i2v, "call": {**_CALL, "image": picture(SIZE), "image_crf": 0}},
)
