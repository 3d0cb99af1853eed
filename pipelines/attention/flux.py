"""Joint attention of FLUX: text before the image, as a stream of its own or as part of the one stream."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from accel.pipelines.attention.stand_in import StandIn


class FluxJointAttention(StandIn):
    """Stands in for `FluxAttnProcessor`, in dual and in single blocks."""

    originals = ("diffusers.models.transformers.transformer_flux:FluxAttnProcessor",)
    text = "prefix"
    dispatched = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        query, key, value = by_head(attn, image_projections(attn, hidden_states))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if attn.added_kv_proj_dim is not None:
            words = by_head(attn, text_projections(attn, encoder_hidden_states))
            query = torch.cat([attn.norm_added_q(words[0]), query], dim=1)
            key = torch.cat([attn.norm_added_k(words[1]), key], dim=1)
            value = torch.cat([words[2], value], dim=1)
        if image_rotary_emb is not None:
            query, key = rotated(query, image_rotary_emb), rotated(key, image_rotary_emb)

        text_length = None if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        output = self.run(query, key, value, attention_mask, text_length)
        output = output.flatten(2, 3).to(query.dtype)
        if text_length is None:
            return output
        text, image = output.split_with_sizes([text_length, output.shape[1] - text_length], dim=1)
        image = attn.to_out[1](attn.to_out[0](image.contiguous()))
        return image, attn.to_add_out(text.contiguous())


def image_projections(attn: Any, hidden_states: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value of the image, fused or not."""
    if attn.fused_projections:
        return attn.to_qkv(hidden_states).chunk(3, dim=-1)
    return attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)


def text_projections(attn: Any, text: Tensor | None) -> tuple[Tensor, ...]:
    """The same of the text."""
    if attn.fused_projections:
        return attn.to_added_qkv(text).chunk(3, dim=-1)
    return attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text)


def by_head(attn: Any, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """(B, S, H D) to (B, S, H, D)."""
    # By head size, since a rank of a tensor-parallel model holds a part of the heads.
    return [tensor.unflatten(-1, (-1, attn.head_dim)) for tensor in tensors]


def rotated(x: Tensor, rotation: Any) -> Any:
    """All tokens (B, S, H, D) turned by the tables of the rotation."""
    return apply_rotary_emb(x, rotation, sequence_dim=1)
