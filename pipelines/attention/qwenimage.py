"""Joint attention of QwenImage: text before the image, each rotated by a table of its own, a mask over padded text."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch import Tensor

from accel.pipelines.attention.stand_in import StandIn


class QwenImageJointAttention(StandIn):
    """Stands in for `QwenDoubleStreamAttnProcessor2_0`."""

    originals = ("diffusers.models.transformers.transformer_qwenimage:QwenDoubleStreamAttnProcessor2_0",)
    text = "prefix"
    dispatched = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if encoder_hidden_states is None or attention_mask is not None:
            # The original says that it takes no such call.
            return self.original(
                attn,
                hidden_states,
                encoder_hidden_states,
                encoder_hidden_states_mask,
                attention_mask,
                image_rotary_emb,
            )
        words = encoder_hidden_states.shape[1]
        mask = None
        if encoder_hidden_states_mask is not None:
            image_mask = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
            mask = torch.cat([encoder_hidden_states_mask, image_mask], dim=1)[:, None, None, :]

        size = attn.inner_dim // attn.heads
        image = [p(hidden_states).unflatten(-1, (-1, size)) for p in (attn.to_q, attn.to_k, attn.to_v)]
        text = [
            p(encoder_hidden_states).unflatten(-1, (-1, size))
            for p in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        ]
        for stream, norms in ((image, (attn.norm_q, attn.norm_k)), (text, (attn.norm_added_q, attn.norm_added_k))):
            stream[:2] = [x if norm is None else norm(x) for x, norm in zip(stream, norms, strict=False)]
        if image_rotary_emb is not None:
            for stream, table in zip((image, text), image_rotary_emb, strict=True):
                stream[:2] = [apply_rotary_emb_qwen(x, table, use_real=False) for x in stream[:2]]

        query, key, value = (torch.cat(pair, dim=1) for pair in zip(text, image, strict=True))
        output = self.run(query, key, value, mask, words).flatten(2, 3).to(query.dtype)
        image_output = attn.to_out[0](output[:, words:].contiguous())
        if len(attn.to_out) > 1:
            image_output = attn.to_out[1](image_output)
        return image_output, attn.to_add_out(output[:, :words].contiguous())
