"""Whole sequences under context parallelism: tokens exchanged for heads before an attention, and back behind it.

As in Ulysses (arXiv 2309.14509), which diffusers follows inside its dispatcher: before, each process has all heads of
some tokens, after, some heads of all tokens. With text, each process has some of the text beside some of the image;
here the whole text comes before the whole image, or behind it, as in a single process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.pipelines.attention.call import AttentionCall
from accel.pipelines.context_parallel import Ranks, context_parallel, part_of, sharing_heads


@dataclass(frozen=True)
class HeadExchange:
    """The exchange of the attention calls of one forward, whose tokens are spread over processes.

    Attributes:
        ranks: the processes, in the order of their tokens and of their heads.
        shares: of each of them, how many tokens of text and of the image it has.
        text_first: whether those of the text come before those of the image.
        device: of the tokens.
    """

    ranks: Ranks
    shares: tuple[tuple[int, int], ...]
    text_first: bool
    device: torch.device

    @classmethod
    def of(cls, call: AttentionCall, query: Tensor, image: int) -> HeadExchange:
        """That of a call with the queries (B, tokens here, H, D) and so many image tokens in all.

        Where parts may be of different lengths, the processes tell each other theirs, and wait for it.
        """
        ranks, tokens, words = sharing_heads(call.parallel), query.shape[1], call.text_length
        if words is None:
            words = max(0, tokens - part_of(image, ranks))
        shares = ((words, tokens - words),) * ranks.size
        if context_parallel(call.parallel).ulysses_anything:
            told = ranks.gathered(torch.tensor(shares[ranks.rank], device=query.device)).tolist()
            shares = tuple((words, image) for words, image in told)
        return cls(ranks, shares, call.text == "prefix", query.device)

    @property
    def tokens(self) -> int:
        """How many tokens this process has."""
        return sum(self.shares[self.ranks.rank])

    @property
    def all_words(self) -> int:
        """How many tokens of text all have together."""
        return sum(words for words, _ in self.shares)

    @property
    def all_tokens(self) -> int:
        """How many tokens all have together."""
        return sum(self._lengths)

    def suits(self, call: AttentionCall, query: Tensor) -> bool:
        """Whether it is also that of another call of the forward."""
        words = self.shares[self.ranks.rank][0]
        return query.shape[1] == self.tokens and query.device == self.device and call.text_length in (None, words)

    def heads(self, number: int) -> slice:
        """Which of so many heads this process has while the sequence is whole."""
        own = number // self.ranks.size
        return slice(own * self.ranks.rank, own * (self.ranks.rank + 1))

    def of_all_heads(self, x: Tensor) -> Tensor:
        """(B, H / n), a number for each head of this process, as (B, H)."""
        return self.ranks.gathered(x).permute(1, 0, 2).flatten(1)

    def like(self, x: Tensor) -> Tensor:
        """A tensor of the shape that (B, tokens here, H, D) becomes, which holds no numbers of its own."""
        return x[:, :1, : x.shape[2] // self.ranks.size].expand(-1, self.all_tokens, -1, -1)

    def gather(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors (B, tokens here, H, D) of one shape and dtype as (B, S, H / n, D)."""
        first, size = tensors[0], self.ranks.size
        batch, tokens, heads, channels = first.shape
        sent = first.new_empty((size, tokens, len(tensors), batch, heads // size, channels))
        for place, tensor in enumerate(tensors):
            sent[:, :, place] = tensor.unflatten(2, (size, -1)).permute(2, 1, 0, 3, 4)
        found = self.ranks.exchanged(sent.flatten(0, 1), [tokens] * size, self._lengths).permute(1, 2, 0, 3, 4)
        return self._in_order(found, 2).unbind(0)

    def scatter(self, x: Tensor) -> Tensor:
        """(B, S, H / n, D) as (B, tokens here, H, D): the way back."""
        size = self.ranks.size
        sent = x if self._order is None else x.index_select(1, self._order.argsort())
        found = self.ranks.exchanged(sent.transpose(0, 1), self._lengths, [self.tokens] * size)
        return found.unflatten(0, (size, -1)).permute(2, 1, 0, 3, 4).flatten(2, 3)

    def call(self, call: AttentionCall) -> AttentionCall:
        """The call as it is told of the whole sequence, its mask that of all tokens."""
        return replace(call, text_length=self.all_words, mask=self._whole_mask(call.mask), parallel=None)

    def _whole_mask(self, mask: Tensor | None) -> Tensor | None:
        """A mask over keys, (B, 1, 1, tokens here), as (B, 1, 1, S); another one, which is not split, as it is."""
        if mask is None or mask.shape[1:] != (1, 1, self.tokens):
            return mask
        parts = self.ranks.gathered(F.pad(mask, (0, max(self._lengths) - self.tokens)))
        whole = torch.cat([part[..., :length] for part, length in zip(parts, self._lengths, strict=True)], -1)
        return self._in_order(whole, -1)

    @property
    def _lengths(self) -> list[int]:
        return [words + image for words, image in self.shares]

    def _in_order(self, x: Tensor, axis: int) -> Tensor:
        return x.contiguous() if self._order is None else x.index_select(axis, self._order)

    @cached_property
    def _order(self) -> Tensor | None:
        """Where, among the tokens of the first process, then of the second, and so on, each token of the sequence is;
        None where that is its order."""
        if not self.all_words:
            return None
        first, second = [], []
        places = torch.arange(self.all_tokens, device=self.device).split(self._lengths)
        for (words, image), here in zip(self.shares, places, strict=True):
            before, behind = here.tensor_split((words if self.text_first else image,))
            first.append(before)
            second.append(behind)
        return torch.cat([*first, *second])
