"""LTX-2, text or image to video with sound."""

from accel.pipelines.facts import AttentionSite, BlockStack, Family, FreeOrder, Guidance, TokenArgument, TokenGrid

_PROCESSOR = "LTX2PerturbedAttnProcessor"
# Beside guidance by the text, calls with some attentions left out, and with picture and sound apart.
_BATCHED = Guidance(form="batched", order=("uncond", "cond"), named=True, further=("uncond_stg", "uncond_modality"))

FAMILY = Family(
    name="ltx2",
    title="LTX-2",
    transformers=("LTX2VideoTransformer3DModel",),
    pipelines={"LTX2Pipeline": _BATCHED, "LTX2ImageToVideoPipeline": _BATCHED},
    stacks=(
        BlockStack(
            path="transformer_blocks",
            blocks=("LTX2VideoTransformerBlock",),
            streams=("hidden_states", "audio_hidden_states"),
            attention=(
                AttentionSite("attn1", "self", _PROCESSOR, dispatched=True, mask="self_attention_mask"),
                AttentionSite("audio_attn1", "other", _PROCESSOR, dispatched=True, mask="audio_self_attention_mask"),
                AttentionSite("attn2", "cross", _PROCESSOR, dispatched=True, mask="encoder_attention_mask"),
                AttentionSite("audio_attn2", "cross", _PROCESSOR, dispatched=True, mask="audio_encoder_attention_mask"),
                AttentionSite(
                    "audio_to_video_attn", "cross", _PROCESSOR, dispatched=True, mask="a2v_cross_attention_mask"
                ),
                AttentionSite(
                    "video_to_audio_attn", "cross", _PROCESSOR, dispatched=True, mask="v2a_cross_attention_mask"
                ),
            ),
        ),
    ),
    text="cross",
    grid=TokenGrid("BNC", patch=("patch_size_t", "patch_size", "patch_size"), sizes=("num_frames", "height", "width")),
    free_order=FreeOrder(
        # Laid out (tokens, channels) or head by head, which counts from behind alike.
        arguments=(TokenArgument("video_rotary_emb", axis=-2), TokenArgument("ca_video_rotary_emb", axis=-2)),
        unless_given={"video_self_attention_mask": "a mask tells which tokens see which"},
    ),
    modules_to_not_convert=(
        "proj_in",
        "audio_proj_in",
        "time_embed",
        "audio_time_embed",
        "prompt_adaln",
        "audio_prompt_adaln",
        "av_cross_attn_video_scale_shift",
        "av_cross_attn_audio_scale_shift",
        "av_cross_attn_video_a2v_gate",
        "av_cross_attn_audio_v2a_gate",
        "caption_projection",
        "audio_caption_projection",
        "norm_out",
        "audio_norm_out",
        "proj_out",
        "audio_proj_out",
        # A gate for each head.
        "*.to_gate_logits",
    ),
    pixels=32,
    per_token_timesteps=True,
    remark="sparse attention in the video's own; that of the sound stays dense",
    notes=(
        "sparse attention is in the video's self-attention; that of the sound, and between the two, is always dense",
        "what spatio-temporal guidance leaves out of its own call stays left out there",
        "caches keep the video's and the sound's tokens of a block together",
    ),
)
