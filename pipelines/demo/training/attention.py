"""Attention for training: any text length at the cost of a short one, and a fast backward pass on a CPU."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn

# Below this many tokens PyTorch's fused attention has the slower backward pass on a CPU.
_FUSED_FROM = 1024


class TextLength:
    """How many padding positions each padding position of a batch stands for.

    The pipeline pads texts with zeros, and Wan's cross-attention does not mask them. All padding has the same
    key and value, so n positions of it act exactly like one whose score is larger by log n.
    """

    def __init__(self) -> None:
        self.bias: Tensor | None = None

    def set(self, mask: Tensor, lengths: Tensor) -> None:
        """Pretend that the texts of `mask` (B, L), 1 where there is a word, are padded to `lengths` (B,) >= L."""
        words = mask.sum(1)
        repeats = (lengths - words) / (mask.shape[1] - words).clamp(min=1)
        padding = repeats.clamp(min=1).log()[:, None]
        self.bias = torch.where(mask.bool(), torch.zeros_like(padding), padding)[:, None, None]


class TrainingAttention:
    """A processor for diffusers' WanAttention with the same result as its own, gradients included."""

    def __init__(self, text_length: TextLength | None = None) -> None:
        self.text_length = text_length

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = project(attn, hidden_states, source, rotary_emb)
        bias = None if self.text_length is None else self.text_length.bias
        if query.is_cuda or (bias is None and query.shape[2] >= _FUSED_FROM):
            mask = None if bias is None else bias.to(query.dtype)
            out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            scores = (query * query.shape[-1] ** -0.5) @ key.mT
            if bias is not None:
                scores = scores + bias
            out = scores.softmax(-1).to(value.dtype) @ value
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def project(
    attn: Any, hidden_states: Tensor, source: Tensor, rotary_emb: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a WanAttention, (B, heads, L, dim) each, normalized and rotated."""
    query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
    key = attn.norm_k(attn.to_k(source)).unflatten(2, (attn.heads, -1))
    value = attn.to_v(source).unflatten(2, (attn.heads, -1))
    if rotary_emb is not None:
        query, key = (_rotate(x, *rotary_emb) for x in (query, key))
    query, key, value = (x.transpose(1, 2).to(value.dtype) for x in (query, key, value))
    return query, key, value


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Wan's rotary embedding of (B, L, heads, dim): pairs of neighbouring channels turn together."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cosine[..., 0::2], sine[..., 1::2]
    return torch.stack((first * cosine - second * sine, first * sine + second * cosine), -1).flatten(-2)


def install(transformer: WanTransformer3DModel) -> TextLength:
    """Gives every block the training processors; returns where the text lengths of a batch are set."""
    text_length = TextLength()
    blocks: Any = transformer.blocks
    for block in blocks:
        block.attn1.set_processor(TrainingAttention())
        block.attn2.set_processor(TrainingAttention(text_length))
    return text_length
