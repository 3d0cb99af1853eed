"""Joint attention of CogView4: text before the image in one projection, rotation of the image alone."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from accel.pipelines.attention.stand_in import StandIn


class CogView4JointAttention(StandIn):
    """Stands in for `CogView4AttnProcessor`."""

    originals = ("diffusers.models.transformers.transformer_cogview4:CogView4AttnProcessor",)
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
        words, dtype = encoder_hidden_states.shape[1], encoder_hidden_states.dtype
        joined = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(joined).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query).to(dtype=dtype)
        key = key if attn.norm_k is None else attn.norm_k(key).to(dtype=dtype)
        if image_rotary_emb is not None:
            query[:, :, words:] = apply_rotary_emb(query[:, :, words:], image_rotary_emb, use_real_unbind_dim=-2)
            key[:, :, words:] = apply_rotary_emb(key[:, :, words:], image_rotary_emb, use_real_unbind_dim=-2)
        mask = None if attention_mask is None else _added(attention_mask, hidden_states.shape[1]).to(query.dtype)

        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        output = self.run(query, key, value, mask, words).flatten(2, 3).type_as(query)
        output = attn.to_out[1](attn.to_out[0](output))
        text, image = output.split([words, output.shape[1] - words], dim=1)
        return image, text


def _added(text_mask: Tensor, image_tokens: int) -> Tensor:
    """(B, 1, tokens, tokens): one between tokens that count and zero elsewhere, which diffusers adds to the scores."""
    of_image = text_mask.new_ones((text_mask.shape[0], image_tokens))
    counting = torch.cat([text_mask, of_image], dim=1).float()[:, None]
    return (counting.transpose(-1, -2) * counting > 0)[:, None]
