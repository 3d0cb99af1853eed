"""Joint attention of HunyuanVideo, 1.5 and MotifVideo: text behind the video, video alone rotated, padding hidden."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from accel.pipelines.attention.call import AttentionCall
from accel.pipelines.attention.stand_in import StandIn


class HunyuanVideoJointAttention(StandIn):
    """Stands in for `HunyuanVideoAttnProcessor2_0`, in dual and in single blocks."""

    originals = ("diffusers.models.transformers.transformer_hunyuan_video:HunyuanVideoAttnProcessor2_0",)
    text = "suffix"
    dispatched = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        words = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        own_projections = attn.add_q_proj is not None
        if encoder_hidden_states is not None and not own_projections:
            hidden_states = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        query, key, value = (
            project(hidden_states).unflatten(2, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = _normed(attn.norm_q, query), _normed(attn.norm_k, key)
        if image_rotary_emb is not None:
            behind = 0 if own_projections else words
            query, key = _rotated(query, image_rotary_emb, behind), _rotated(key, image_rotary_emb, behind)
        if encoder_hidden_states is not None and own_projections:
            text = [
                project(encoder_hidden_states).unflatten(2, (attn.heads, -1))
                for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            ]
            query = torch.cat([query, _normed(attn.norm_added_q, text[0])], dim=1)
            key = torch.cat([key, _normed(attn.norm_added_k, text[1])], dim=1)
            value = torch.cat([value, text[2]], dim=1)

        output = self.run(query, key, value, attention_mask, words)
        output = output.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return output, None
        video, text_output = output[:, :-words], output[:, -words:]
        if getattr(attn, "to_out", None) is not None:
            video = attn.to_out[1](attn.to_out[0](video))
        if getattr(attn, "to_add_out", None) is not None:
            text_output = attn.to_add_out(text_output)
        return video, text_output


class HunyuanVideo15JointAttention(HunyuanVideoJointAttention):
    """Stands in for `HunyuanVideo15AttnProcessor2_0`, which is told of the padded text alone."""

    originals = ("diffusers.models.transformers.transformer_hunyuan_video15:HunyuanVideo15AttnProcessor2_0",)

    def call(self, mask: Tensor | None, text_length: int | None) -> AttentionCall:
        return replace(super().call(None, text_length), text_mask=mask)


class MotifVideoJointAttention(HunyuanVideoJointAttention):
    """Stands in for `MotifVideoAttnProcessor2_0`, which computes the same; its blocks always have a text."""

    originals = ("diffusers.models.transformers.transformer_motif_video:MotifVideoAttnProcessor2_0",)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        if encoder_hidden_states is None:
            return self.original(attn, hidden_states, None, attention_mask, image_rotary_emb)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


def _normed(norm: Any, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _rotated(x: Tensor, rotation: Any, text_behind: int) -> Tensor:
    if not text_behind:
        return _turned(x, rotation)
    return torch.cat([_turned(x[:, :-text_behind], rotation), x[:, -text_behind:]], dim=1)


def _turned(x: Tensor, rotation: Any) -> Any:
    return apply_rotary_emb(x, rotation, sequence_dim=1)
