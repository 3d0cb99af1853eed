"""Self-attention of LTX-Video: one stream, norms and rotation over all heads at once."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_ltx import apply_rotary_emb
from torch import Tensor

from accel.pipelines.attention.stand_in import StandIn


class LTXSelfAttention(StandIn):
    """Stands in for `LTXVideoAttnProcessor` where it attends to its own tokens; text has an attention of its own."""

    originals = ("diffusers.models.transformers.transformer_ltx:LTXVideoAttnProcessor",)
    text = "none"
    dispatched = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        value = attn.to_v(hidden_states)
        if image_rotary_emb is not None:
            query, key = apply_rotary_emb(query, image_rotary_emb), apply_rotary_emb(key, image_rotary_emb)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        output = self.run(query, key, value, None, 0).flatten(2, 3).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](output))
