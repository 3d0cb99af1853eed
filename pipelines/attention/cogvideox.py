"""Joint attention of CogVideoX: text before the video in one stream, rotation of the video alone."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from accel.pipelines.attention.stand_in import StandIn


class CogVideoXJointAttention(StandIn):
    """Stands in for `CogVideoXAttnProcessor2_0`, and for its variant with fused projections."""

    originals = (
        "diffusers.models.attention_processor:CogVideoXAttnProcessor2_0",
        "diffusers.models.attention_processor:FusedCogVideoXAttnProcessor2_0",
    )
    text = "prefix"
    dispatched = False

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        words = encoder_hidden_states.shape[1]
        hidden_states = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        batch, length, _ = hidden_states.shape
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])

        if self._fused:
            projected = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            projected = (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        query, key, value = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in projected)
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if image_rotary_emb is not None:
            query[:, :, words:] = apply_rotary_emb(query[:, :, words:], image_rotary_emb)
            if not attn.is_cross_attention:
                key[:, :, words:] = apply_rotary_emb(key[:, :, words:], image_rotary_emb)

        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        output = self.run(query, key, value, attention_mask, words).flatten(2, 3)
        output = attn.to_out[1](attn.to_out[0](output))
        text, video = output.split([words, length - words], dim=1)
        return video, text

    @property
    def _fused(self) -> bool:
        return type(self.original).__name__.startswith("Fused")
