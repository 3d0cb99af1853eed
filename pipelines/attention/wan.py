"""Self-attention of Wan: one stream, norms over all heads, rotation of neighbouring pairs of channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel.pipelines.attention.stand_in import StandIn


class WanSelfAttention(StandIn):
    """Stands in for `WanAttnProcessor` where it attends to its own tokens; text has an attention of its own.

    Also for that of SkyReels-V2, which computes the same.
    """

    originals = (
        "diffusers.models.transformers.transformer_wan:WanAttnProcessor",
        "diffusers.models.transformers.transformer_skyreels_v2:SkyReelsV2AttnProcessor",
    )
    text = "none"
    dispatched = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (tensor.unflatten(2, (attn.heads, -1)) for tensor in (query, key, value))
        if rotary_emb is not None:
            query, key = _rotated(query, *rotary_emb), _rotated(key, *rotary_emb)
        output = self.run(query, key, value, attention_mask, 0)
        output = output.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](output))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # The tables hold each angle twice, once for either channel of a pair.
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.empty_like(x)
    turned[..., 0::2] = real * cos - imaginary * sin
    turned[..., 1::2] = real * sin + imaginary * cos
    return turned
