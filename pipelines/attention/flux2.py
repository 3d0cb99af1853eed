"""Joint attention of FLUX.2: text before the image, in single blocks projected together with the feed-forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel.pipelines.attention.flux import by_head, image_projections, rotated, text_projections
from accel.pipelines.attention.stand_in import StandIn


class Flux2JointAttention(StandIn):
    """Stands in for `Flux2AttnProcessor`, in dual blocks."""

    originals = ("diffusers.models.transformers.transformer_flux2:Flux2AttnProcessor",)
    text = "prefix"
    dispatched = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if encoder_hidden_states is None:
            return self.original(attn, hidden_states, None, attention_mask, image_rotary_emb)
        query, key, value = by_head(attn, image_projections(attn, hidden_states))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if attn.added_kv_proj_dim is not None:
            words = by_head(attn, text_projections(attn, encoder_hidden_states))
            query = torch.cat([attn.norm_added_q(words[0]), query], dim=1)
            key = torch.cat([attn.norm_added_k(words[1]), key], dim=1)
            value = torch.cat([words[2], value], dim=1)
        if image_rotary_emb is not None:
            query, key = rotated(query, image_rotary_emb), rotated(key, image_rotary_emb)

        length = encoder_hidden_states.shape[1]
        output = self.run(query, key, value, attention_mask, length).flatten(2, 3).to(query.dtype)
        text, image = output.split_with_sizes([length, output.shape[1] - length], dim=1)
        text = attn.to_add_out(text)
        return attn.to_out[1](attn.to_out[0](image)), text


class Flux2ParallelAttention(StandIn):
    """Stands in for `Flux2ParallelSelfAttnProcessor`, in single blocks, whose call does not tell text from image."""

    originals = ("diffusers.models.transformers.transformer_flux2:Flux2ParallelSelfAttnProcessor",)
    text = "prefix"
    dispatched = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        projected = attn.to_qkv_mlp_proj(hidden_states)
        # By their share, since a rank of a tensor-parallel model holds a part of both.
        of_attention, of_mlp = 3 * attn.inner_dim, attn.mlp_hidden_dim * attn.mlp_mult_factor
        width = projected.shape[-1] * of_attention // (of_attention + of_mlp)
        qkv, mlp = torch.split(projected, [width, projected.shape[-1] - width], dim=-1)
        query, key, value = by_head(attn, qkv.chunk(3, dim=-1))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = rotated(query, image_rotary_emb), rotated(key, image_rotary_emb)
        output = self.run(query, key, value, attention_mask, None).flatten(2, 3).to(query.dtype)
        return attn.to_out(torch.cat([output, attn.mlp_act_fn(mlp)], dim=-1))
