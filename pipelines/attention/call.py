"""What a processor tells of one attention call, and the attention that diffusers would have computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from accel.pipelines.context_parallel import context_parallel

Text = Literal["none", "prefix", "suffix"]


@dataclass(frozen=True)
class External:
    """Keys and values of earlier chunks, which every step of a chunk finds the same.

    Attributes:
        tokens: how many there are.
        read: gives both, (B, tokens, H, D), rotated; it costs time, and need not be called.
    """

    tokens: int
    read: Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention, as the call itself shows it.

    Attributes:
        text: where the text stands among the tokens: nowhere, before the image or behind it.
        text_length: tokens of text, padding included; None where the call does not tell (FLUX's single blocks are given
            text and image as one).
        mask: what diffusers' own processor would hand to its attention, or None.
        text_mask: (B, text tokens), which of them count, where diffusers' own processor itself keeps the others from
            all that count; the same object in all blocks of a call of the transformer.
        cut: how it does that: by leaving them out, sample by sample, with zeros for their output; or else by a mask
            over queries and keys.
        counting: (B, tokens) of ones and zeros, of which `mask` is the product for each query and key: it is added to
            the scores, so that keys of tokens that do not count weigh less, but are not hidden.
        given_mask: what the block was given for its mask, where the family's facts name that: the same object in all
            blocks of a call of the transformer, where processors may each make a `mask` of their own from it.
        dispatched: whether that is diffusers' dispatcher, with `backend` and `parallel`, or torch's own function.
        scale: what scores are multiplied by; None is 1/sqrt(head size).
        external: in a pipeline that generates chunk by chunk, what the queries attend to before `key` and `value`;
            these may have rows of zeros behind those of the queries, which take part in the softmax as all others do.
        compiled: whether the call stands in a compiled block.
        layer: number of the attention in its denoiser, which is that of its block; a second attention of a block has
            one behind those of all blocks. None where the call does not tell.
    """

    text: Text
    text_length: int | None
    mask: Tensor | None
    dispatched: bool
    text_mask: Tensor | None = None
    cut: bool = False
    counting: Tensor | None = None
    given_mask: Any = None
    backend: Any = None
    parallel: Any = None
    scale: float | None = None
    external: External | None = None
    compiled: bool = False
    layer: int | None = None

    @property
    def spread(self) -> bool:
        """Whether the call holds a part of the tokens, and other devices the rest (diffusers' context parallelism)."""
        return spread_over_devices(self.parallel)

    def dense(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention as diffusers' own processor computes it, the same bits: (B, S, H, D) to (B, S, H, D).

        Behind earlier chunks and in a compiled block the same to rounding: flex attention would be compiled there, and
        torch's own function stands in for it.
        """
        if self.external is not None:
            return self._behind(self.external, query, key, value)
        if self.text_mask is not None and self.cut:
            return _without_padding(query, key, value, self.text_mask)
        mask = self.mask if self.text_mask is None else _among_counting(self.text_mask, query.shape[1])
        if self.dispatched:
            return dispatch_attention_fn(
                query,
                key,
                value,
                attn_mask=mask,
                scale=self.scale,
                backend=self.backend,
                parallel_config=self.parallel,
            )
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale).transpose(1, 2)

    def _behind(self, external: External, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Laid out in memory as there, heads before tokens, because matrix products may round by layout.
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        before = (tensor.transpose(1, 2) for tensor in external.read())
        tokens, padding = query.shape[2], key.shape[2] - query.shape[2]
        key, value = (torch.cat(pair, dim=2) for pair in zip(before, (key, value), strict=True))
        if self.compiled:
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        if padding:
            query = F.pad(query, (0, 0, 0, padding))
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        out = dispatch_attention_fn(query, key, value, backend=self.backend, parallel_config=self.parallel)
        return out[:, :tokens]


def _among_counting(text_mask: Tensor, tokens: int) -> Tensor:
    """(B, 1, tokens, tokens) bool: tokens that count see each other, those of the image in front included."""
    counting = F.pad(text_mask, (tokens - text_mask.shape[1], 0), value=True).bool()
    return counting[:, None, None, :] & counting[:, None, :, None]


def _without_padding(query: Tensor, key: Tensor, value: Tensor, text_mask: Tensor) -> Tensor:
    """Torch's own attention of each sample's image and the text tokens that count, which come first in the output."""
    tokens, image = query.shape[1], query.shape[1] - text_mask.shape[1]
    outputs = []
    for sample, mask in enumerate(text_mask):
        counting = torch.nonzero(mask, as_tuple=False).flatten()
        own = [x[sample : sample + 1].transpose(1, 2) for x in (query, key, value)]
        q, k, v = (torch.cat([x[:, :, :image], x[:, :, image:][:, :, counting]], dim=2) for x in own)
        out = F.scaled_dot_product_attention(q, k, v)
        outputs.append(F.pad(out, (0, 0, 0, tokens - out.shape[2])))
    return torch.cat(outputs).transpose(1, 2)


def spread_over_devices(parallel: Any) -> bool:
    """Whether a processor's parallel configuration is one of context parallelism, which splits the tokens."""
    return context_parallel(parallel) is not None


# Gets query, key and value (B, S, H, D) after norms and rotation, and returns the output (B, S, H, D).
Attend = Callable[[Tensor, Tensor, Tensor, AttentionCall], Tensor]


def dense(query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
    """The `attend` that changes nothing."""
    return call.dense(query, key, value)
