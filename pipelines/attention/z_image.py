"""Joint attention of Z-Image: text behind the image in one stream, rotation of both by one table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel.pipelines.attention.stand_in import StandIn


class ZImageJointAttention(StandIn):
    """Stands in for `ZSingleStreamAttnProcessor`, whose call does not tell text from image."""

    originals = ("diffusers.models.transformers.transformer_z_image:ZSingleStreamAttnProcessor",)
    text = "suffix"
    dispatched = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if freqs_cis is not None:
            query, key = _turned(query, freqs_cis), _turned(key, freqs_cis)
        mask = attention_mask
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None, :]
        output = attn.to_out[0](self.run(query, key, value, mask, None).flatten(2, 3).to(query.dtype))
        return attn.to_out[1](output) if len(attn.to_out) > 1 else output


def _turned(x: Tensor, rotation: Tensor) -> Tensor:
    """(B, S, H, D) with each pair of channels as a complex number times that of the table, (B, S, D / 2)."""
    with torch.autocast("cuda", enabled=False):
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * rotation.unsqueeze(2)).flatten(3).type_as(x)
