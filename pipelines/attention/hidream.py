"""Joint attention of HiDream-I1: text behind the image, as a stream of its own or as part of the one stream."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_hidream_image import apply_rope
from torch import Tensor

from accel.pipelines.attention.stand_in import StandIn


class HiDreamJointAttention(StandIn):
    """Stands in for `HiDreamAttnProcessor`, in dual and in single blocks; in the latter its call does not tell the
    text."""

    originals = ("diffusers.models.transformers.transformer_hidream_image:HiDreamAttnProcessor",)
    text = "suffix"
    dispatched = False

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        hidden_states_masks: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        image_rotary_emb: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        dtype = hidden_states.dtype
        query = attn.q_rms_norm(attn.to_q(hidden_states)).to(dtype=dtype)
        key = attn.k_rms_norm(attn.to_k(hidden_states)).to(dtype=dtype)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, attn.to_v(hidden_states)))
        if hidden_states_masks is not None:
            # Of a picture that is no square; its tokens stay in the softmax, with scores of zero.
            key = key * hidden_states_masks.view(*key.shape[:2], 1, 1)
        if not attn.single:
            text_query = attn.q_rms_norm_t(attn.to_q_t(encoder_hidden_states)).to(dtype=dtype)
            text_key = attn.k_rms_norm_t(attn.to_k_t(encoder_hidden_states)).to(dtype=dtype)
            text = (text_query, text_key, attn.to_v_t(encoder_hidden_states))
            pairs = zip((query, key, value), (x.unflatten(2, (attn.heads, -1)) for x in text), strict=True)
            query, key, value = (torch.cat(pair, dim=1) for pair in pairs)
        query, key = _turned(query, key, image_rotary_emb)

        words = None if attn.single else value.shape[1] - hidden_states.shape[1]
        output = self.run(query, key, value, None, words).flatten(2, 3).to(query.dtype)
        if words is None:
            return attn.to_out(output)
        image_output, text_output = output.split([hidden_states.shape[1], words], dim=1)
        return attn.to_out(image_output), attn.to_out_t(text_output)


def _turned(query: Tensor, key: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the first channels turned by the table, which may be for a part of them."""
    turned = 2 * rotation.shape[-3]
    if query.shape[-1] == turned:
        return apply_rope(query, key, rotation)
    (query, query_rest), (key, key_rest) = (x.chunk(2, dim=-1) for x in (query, key))
    query, key = apply_rope(query, key, rotation)
    return torch.cat([query, query_rest], dim=-1), torch.cat([key, key_rest], dim=-1)
