"""Whole sequences under context parallelism: tokens exchanged for heads before an attention, and back behind it.

As in Ulysses (arXiv 2309.14509), which diffusers follows inside its dispatcher: before, each process has all heads of
some tokens, after, some heads of all tokens. With text, each process has some of the text beside some of the image;
here the whole text comes before the whole image, or behind it, as in a single process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from accel.pipelines.attention.call import AttentionCall
from accel.pipelines.context_parallel import Ranks, sharing_heads


@dataclass(frozen=True)
class HeadExchange:
    """The exchange of one attention call whose tokens are spread over processes.

    Attributes:
        ranks: the processes, in the order of their tokens and of their heads.
        tokens: how many each of them has.
        words: how many of these are text.
        text_first: whether they come before those of the image.
    """

    ranks: Ranks
    tokens: int
    words: int
    text_first: bool

    @classmethod
    def of(cls, call: AttentionCall, tokens: int, image: int) -> HeadExchange:
        """That of a call with so many tokens here and so many image tokens in all."""
        ranks = sharing_heads(call.parallel)
        words = call.text_length
        if words is None:
            words = max(0, tokens - image // ranks.size)
        return cls(ranks, tokens, words, call.text == "prefix")

    def heads(self, number: int) -> slice:
        """Which of so many heads this process has while the sequence is whole."""
        own = number // self.ranks.size
        return slice(own * self.ranks.rank, own * (self.ranks.rank + 1))

    def of_all_heads(self, x: Tensor) -> Tensor:
        """(B, H / n), a number for each head of this process, as (B, H)."""
        return self.ranks.gathered(x).permute(1, 0, 2).flatten(1)

    def like(self, x: Tensor) -> Tensor:
        """A tensor of the shape that (B, S / n, H, D) becomes, which holds no numbers of its own."""
        heads = x.shape[2] // self.ranks.size
        return x[:, :1, :heads].expand(-1, self.tokens * self.ranks.size, -1, -1)

    def gather(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors (B, S / n, H, D) of one shape and dtype as (B, S, H / n, D)."""
        first, size = tensors[0], self.ranks.size
        batch, _, heads, channels = first.shape
        sent = first.new_empty((size, len(tensors), batch, self.tokens, heads // size, channels))
        for place, tensor in enumerate(tensors):
            sent[:, place] = tensor.unflatten(2, (size, -1)).permute(2, 0, 1, 3, 4)
        parts = self.ranks.exchanged(sent).permute(1, 2, 0, 3, 4, 5)
        return self._joined(parts, 2).unbind(0)

    def scatter(self, x: Tensor) -> Tensor:
        """(B, S, H / n, D) as (B, S / n, H, D): the way back."""
        size = self.ranks.size
        before, behind = x.tensor_split((self._first * size,), 1)
        parts = torch.cat([part.unflatten(1, (size, -1)) for part in (before, behind)], 2)
        return self.ranks.exchanged(parts.transpose(0, 1)).permute(1, 2, 0, 3, 4).flatten(2, 3)

    def call(self, call: AttentionCall) -> AttentionCall:
        """The call as it is told of the whole sequence, its mask that of all tokens."""
        text_length = self.words * self.ranks.size
        return replace(call, text_length=text_length, mask=self.mask(call.mask), parallel=None)

    def mask(self, mask: Tensor | None) -> Tensor | None:
        """A mask over keys, (B, 1, 1, S / n), as (B, 1, 1, S); another one, which is not split, as it is."""
        if mask is None or mask.shape[1:] != (1, 1, self.tokens):
            return mask
        return self._joined(self.ranks.gathered(mask).permute(1, 2, 3, 0, 4), 3)

    def _joined(self, parts: Tensor, axis: int) -> Tensor:
        """(..., n, S / n, ...) with the ranks at `axis` as (..., S, ...), text and image each in one piece."""
        before, behind = parts.tensor_split((self._first,), axis + 1)
        return torch.cat([part.flatten(axis, axis + 1) for part in (before, behind)], axis)

    @property
    def _first(self) -> int:
        """How many tokens of each process come first: those of the text or those of the image."""
        return self.words if self.text_first else self.tokens - self.words
