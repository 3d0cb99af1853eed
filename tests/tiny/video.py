"""Tiny video pipelines: Wan (one and two transformers, VACE), CogVideoX, HunyuanVideo, AnyFlow-FAR.

All make 3 x 12 x 16 = 576 video tokens from 48 x 64 pixels, but AnyFlow-FAR 2 x 16 x 16 = 512 in a first and half as
many in a second chunk. Their autoencoders halve height and width once, so pixels stay few while the transformers keep
their 2 x 2 patches. Every builder takes `seed`, default 0.
"""

from typing import Any

from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)

from tests.tiny import text
from tests.tiny.weights import tiny

HEADS, HEAD_SIZE = 2, 64
TEXT_WIDTH = 32
CHANNELS = 4
WAN_CHANNELS = 16
COMPRESSION = 2
VACE_LAYERS = [0, 2]
FLOW_SHIFT = 3.0

WAN_SHAPE: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_SIZE,
    "in_channels": WAN_CHANNELS,
    "out_channels": WAN_CHANNELS,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 64,
    "ffn_dim": 256,
    "num_layers": 4,
    "cross_attn_norm": True,
    "rope_max_seq_len": 32,
}


def wan_parts(scheduler: Any = None) -> dict[str, Any]:
    """All that a Wan pipeline has beside its transformers."""
    tokenizer = text.t5_tokenizer()
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=WAN_CHANNELS,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        scale_factor_temporal=COMPRESSION,
        scale_factor_spatial=COMPRESSION,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text.umt5_encoder(tokenizer, TEXT_WIDTH),
        "vae": vae,
        "scheduler": scheduler or FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT),
    }


@tiny
def wan() -> WanPipeline:
    """Two guidance calls per step, in the cache contexts "cond" and "uncond"."""
    return WanPipeline(**wan_parts(), transformer=WanTransformer3DModel(**WAN_SHAPE))


def unipc() -> UniPCMultistepScheduler:
    """The multistep scheduler that the published checkpoints of Wan and SkyReels-V2 carry."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)


@tiny
def wan_unipc() -> WanPipeline:
    """Wan with a multistep scheduler."""
    return WanPipeline(**wan_parts(unipc()), transformer=WanTransformer3DModel(**WAN_SHAPE))


@tiny
def wan22() -> WanPipeline:
    """Wan 2.2: `transformer` takes the noisy steps, `transformer_2` the rest; of eight steps, four each."""
    return WanPipeline(
        **wan_parts(),
        transformer=WanTransformer3DModel(**WAN_SHAPE),
        transformer_2=WanTransformer3DModel(**WAN_SHAPE),
        boundary_ratio=0.8,
    )


@tiny
def wan_vace() -> WanVACEPipeline:
    """Wan with control hints, added to the hidden states after blocks 0 and 2 of four."""
    transformer = WanVACETransformer3DModel(
        **WAN_SHAPE, vace_layers=VACE_LAYERS, vace_in_channels=2 * WAN_CHANNELS + COMPRESSION**2
    )
    return WanVACEPipeline(**wan_parts(), transformer=transformer)


COGVIDEOX_SHAPE: dict[str, Any] = {
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_SIZE,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "time_embed_dim": 64,
    "text_embed_dim": TEXT_WIDTH,
    "num_layers": 4,
    "sample_height": 24,
    "sample_width": 32,
    "sample_frames": 5,
    "temporal_compression_ratio": COMPRESSION,
    "max_text_seq_length": 24,
    "use_rotary_positional_embeddings": True,
}


def cogvideox_parts() -> dict[str, Any]:
    """All that a CogVideoX pipeline has beside its transformer."""
    tokenizer = text.t5_tokenizer()
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=COMPRESSION,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text.t5_encoder(tokenizer, TEXT_WIDTH),
        "vae": vae,
        "scheduler": scheduler,
    }


@tiny
def cogvideox() -> CogVideoXPipeline:
    """Batched guidance [uncond, cond], text first in one sequence, rotary positions on video tokens only."""
    return CogVideoXPipeline(transformer=CogVideoXTransformer3DModel(**COGVIDEOX_SHAPE), **cogvideox_parts())


HUNYUAN_SHAPE: dict[str, Any] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_SIZE,
    "num_layers": 3,
    "num_single_layers": 3,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": TEXT_WIDTH,
    "pooled_projection_dim": TEXT_WIDTH,
    "rope_axes_dim": (16, 24, 24),
}


def hunyuan_autoencoder() -> AutoencoderKLHunyuanVideo:
    """Four frames are one."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        spatial_compression_ratio=COMPRESSION,
        temporal_compression_ratio=4,
    )


@tiny
def hunyuan_video() -> HunyuanVideoPipeline:
    """Distilled guidance (one call per step), text last with a key mask, dual and single blocks."""
    tokenizer, tokenizer_2 = text.llama_tokenizer(), text.clip_tokenizer()
    transformer, vae = HunyuanVideoTransformer3DModel(**HUNYUAN_SHAPE), hunyuan_autoencoder()
    return HunyuanVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=text.llama_encoder(tokenizer, TEXT_WIDTH),
        tokenizer_2=tokenizer_2,
        text_encoder_2=text.clip_encoder(tokenizer_2, TEXT_WIDTH),
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


@tiny
def anyflow_far() -> AnyFlowFARPipeline:
    """Chunk by chunk with a key-value cache and batched guidance; of two chunks before, the first is coarse."""
    transformer = AnyFlowFARTransformer3DModel(**WAN_SHAPE, full_chunk_limit=2, chunk_partition=(2, 1))
    return AnyFlowFARPipeline(**wan_parts(FlowMapEulerDiscreteScheduler(shift=FLOW_SHIFT)), transformer=transformer)
