"""Self-attention of the older transformers: one stream, no rotation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from accel.pipelines.attention.stand_in import StandIn


class PlainSelfAttention(StandIn):
    """Stands in for `AttnProcessor2_0` where it attends to its own tokens (batch, tokens, channels)."""

    originals = ("diffusers.models.attention_processor:AttnProcessor2_0",)
    text = "none"
    dispatched = False

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None or hidden_states.ndim != 3:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        batch, length, _ = hidden_states.shape
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        query, key, value = (
            project(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        output = self.run(query, key, value, attention_mask, 0).flatten(2, 3).to(query.dtype)
        output = attn.to_out[1](attn.to_out[0](output))
        if attn.residual_connection:
            output = output + hidden_states
        return output / attn.rescale_output_factor

    @classmethod
    def refusal(cls, attn: nn.Module) -> str | None:
        for norm in ("spatial_norm", "group_norm"):
            if getattr(attn, norm, None) is not None:
                return f"it has a {norm}, which no transformer that Accel knows has"
        return None
