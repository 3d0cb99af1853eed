"""Joint attention of Lumina Image 2.0: text before the image in one stream, grouped heads, a scale of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from accel.pipelines.attention.stand_in import StandIn


class Lumina2JointAttention(StandIn):
    """Stands in for `Lumina2AttnProcessor2_0`, whose call does not tell text from image."""

    originals = ("diffusers.models.transformers.transformer_lumina2:Lumina2AttnProcessor2_0",)
    text = "prefix"
    dispatched = False

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
        base_sequence_length: int | None = None,
    ) -> Tensor:
        batch, tokens, _ = hidden_states.shape
        query = attn.to_q(hidden_states)
        size = query.shape[-1] // attn.heads
        dtype = query.dtype
        query, key, value = (
            x.unflatten(2, (-1, size))
            for x in (query, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (_rotated(x, image_rotary_emb) for x in (query, key))
        query, key = query.to(dtype), key.to(dtype)
        key, value = (torch.repeat_interleave(x, attn.heads // x.shape[2], dim=2) for x in (key, value))

        # A model that was trained on shorter sequences keeps its entropy so.
        longer = 1.0 if base_sequence_length is None else math.sqrt(math.log(tokens, base_sequence_length))
        mask = None if attention_mask is None else attention_mask.bool().view(batch, 1, 1, -1)
        output = self.run(query, key, value, mask, None, longer * attn.scale).flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](output))


def _rotated(x: Tensor, rotation: Any) -> Any:
    return apply_rotary_emb(x, rotation, use_real=False)
