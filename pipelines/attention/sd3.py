"""Joint attention of Stable Diffusion 3: the image before its text, no rotation; and its self-attention in 3.5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel.pipelines.attention.stand_in import StandIn


class SD3JointAttention(StandIn):
    """Stands in for `JointAttnProcessor2_0`, and for its variant with fused projections, which leaves out the norms.

    Both leave a mask out of account.
    """

    originals = (
        "diffusers.models.attention_processor:JointAttnProcessor2_0",
        "diffusers.models.attention_processor:FusedJointAttnProcessor2_0",
    )
    text = "suffix"
    dispatched = False

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        fused = type(self.original).__name__.startswith("Fused")
        if hidden_states.ndim != 3 or (fused and encoder_hidden_states is None):
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        if fused:
            image = attn.to_qkv(hidden_states).chunk(3, dim=-1)
            words = attn.to_added_qkv(encoder_hidden_states).chunk(3, dim=-1)
            query, key, value = (_by_head(attn, torch.cat(pair, dim=1)) for pair in zip(image, words, strict=True))
        else:
            query, key, value = (
                _by_head(attn, project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v)
            )
            query, key = _normed(attn.norm_q, query), _normed(attn.norm_k, key)
            if encoder_hidden_states is not None:
                words = [
                    _by_head(attn, project(encoder_hidden_states))
                    for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
                ]
                query = torch.cat([query, _normed(attn.norm_added_q, words[0])], dim=2)
                key = torch.cat([key, _normed(attn.norm_added_k, words[1])], dim=2)
                value = torch.cat([value, words[2]], dim=2)

        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        length = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        output = self.run(query, key, value, None, length).flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return attn.to_out[1](attn.to_out[0](output))
        image_output, text_output = output.split([hidden_states.shape[1], length], dim=1)
        if not attn.context_pre_only:
            text_output = attn.to_add_out(text_output)
        return attn.to_out[1](attn.to_out[0](image_output)), text_output


def _by_head(attn: Any, x: Tensor) -> Tensor:
    return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)


def _normed(norm: Any, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)
