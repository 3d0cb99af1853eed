"""Self-attention of LTX-2's video: norms and rotation over all heads at once or head by head, perhaps gated."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_ltx2 import apply_interleaved_rotary_emb, apply_split_rotary_emb
from torch import Tensor

from accel.pipelines.attention.stand_in import StandIn

_ROTATED = {"interleaved": apply_interleaved_rotary_emb, "split": apply_split_rotary_emb}


class LTX2SelfAttention(StandIn):
    """Stands in for `LTX2AudioVideoAttnProcessor` where it attends to its own tokens."""

    originals = ("diffusers.models.transformers.transformer_ltx2:LTX2AudioVideoAttnProcessor",)
    text = "none"
    dispatched = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: tuple[Tensor, Tensor] | None = None,
        key_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None or key_rotary_emb is not None:
            return self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, query_rotary_emb, key_rotary_emb
            )
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        value = attn.to_v(hidden_states)
        if query_rotary_emb is not None:
            rotated = _ROTATED[attn.rope_type]
            query, key = rotated(query, query_rotary_emb), rotated(key, query_rotary_emb)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        output = self.run(query, key, value, None, 0).to(query.dtype)
        if attn.to_gate_logits is not None:
            output = output * (2.0 * attn.to_gate_logits(hidden_states).sigmoid()).unsqueeze(-1)
        return attn.to_out[1](attn.to_out[0](output.flatten(2, 3)))


class LTX2PerturbedSelfAttention(LTX2SelfAttention):
    """Stands in for `LTX2PerturbedAttnProcessor`, to which it leaves the calls that a guidance perturbs."""

    originals = ("diffusers.models.transformers.transformer_ltx2:LTX2PerturbedAttnProcessor",)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: tuple[Tensor, Tensor] | None = None,
        key_rotary_emb: tuple[Tensor, Tensor] | None = None,
        perturbation_mask: Tensor | None = None,
        all_perturbed: Any = None,
    ) -> Tensor:
        given = (attn, hidden_states, encoder_hidden_states, attention_mask, query_rotary_emb, key_rotary_emb)
        if perturbation_mask is not None or all_perturbed:
            return self.original(*given, perturbation_mask, all_perturbed)
        return super().__call__(*given)
