"""Self-attention of Cosmos: one stream, norms and rotation head by head."""

from __future__ import annotations

from typing import Any

from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from accel.pipelines.attention.stand_in import StandIn


class CosmosSelfAttention(StandIn):
    """Stands in for `CosmosAttnProcessor2_0` where it attends to its own tokens; text has an attention of its own."""

    originals = ("diffusers.models.transformers.transformer_cosmos:CosmosAttnProcessor2_0",)
    text = "none"
    dispatched = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        query, key, value = (
            project(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = _rotated(query, image_rotary_emb), _rotated(key, image_rotary_emb)
        # Laid out in memory as there, because attention may round by layout.
        key, value = key.contiguous(), value.contiguous()
        output = self.run(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), None, 0)
        return attn.to_out[1](attn.to_out[0](output.flatten(2, 3).type_as(query)))


def _rotated(x: Tensor, rotation: Any) -> Any:
    return apply_rotary_emb(x, rotation, use_real=True, use_real_unbind_dim=-2)
