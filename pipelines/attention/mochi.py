"""Joint attention of Mochi: text behind the video, rotation of the video alone and learned, padded text cut off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from accel.pipelines.attention.call import AttentionCall
from accel.pipelines.attention.stand_in import StandIn


class MochiJointAttention(StandIn):
    """Stands in for `MochiAttnProcessor2_0`."""

    originals = ("diffusers.models.attention_processor:MochiAttnProcessor2_0",)
    text = "suffix"
    dispatched = False

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        video = [project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v)]
        text = [project(encoder_hidden_states) for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in video)
        text_query, text_key, text_value = (x.unflatten(2, (attn.heads, -1)) for x in text)
        query, key = _normed(attn.norm_q, query), _normed(attn.norm_k, key)
        text_query, text_key = _normed(attn.norm_added_q, text_query), _normed(attn.norm_added_k, text_key)
        if image_rotary_emb is not None:
            query, key = _turned(query, *image_rotary_emb), _turned(key, *image_rotary_emb)

        pairs = ((query, text_query), (key, text_key), (value, text_value))
        query, key, value = (torch.cat(pair, dim=1) for pair in pairs)
        tokens, words = hidden_states.shape[1], encoder_hidden_states.shape[1]
        output = self.run(query, key, value, attention_mask, words).flatten(2, 3)
        hidden_states, encoder_hidden_states = output.split_with_sizes((tokens, words), dim=1)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if hasattr(attn, "to_add_out"):
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states

    def call(self, mask: Tensor | None, text_length: int | None) -> AttentionCall:
        return replace(super().call(None, text_length), text_mask=mask, cut=True)


def _normed(norm: Any, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    turned = (even * cos - odd * sin).to(x.dtype), (even * sin + odd * cos).to(x.dtype)
    return torch.stack(turned, dim=-1).flatten(-2)
