"""One sparse attention call: its tokens put into blocks, and what methods compute on them.

Text queries are dense and text keys always exact. A mask must be the right padding of the text, before or behind the
image, which is handled exactly, hidden or of less weight; with any other the call is for diffusers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from accel.kernels.arrangement import RASTER, Arrangement, arrange
from accel.kernels.block_attention import block_attention, dense_attention
from accel.kernels.block_mass import block_mass
from accel.kernels.block_statistics import BlockStatistics, block_means, block_statistics
from accel.kernels.blocks import number_of_blocks
from accel.kernels.selection import kept_number, top_blocks
from accel.methods.block_sizes import BlockSizes
from accel.methods.handover import Prior
from accel.pipelines.attention import AttentionCall, HeadExchange
from accel.pipelines.context_parallel import why_not_by_heads
from accel.runtime.clock import Moment

Tail = Literal["hybrid", "zeroth", "none"]
Blocks = tuple[Tensor, Tensor]
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Of image tokens: with fewer there is nothing to choose from.
FEWEST_BLOCKS = 2


class NotInBlocks(Exception):
    """Why the tokens of a call cannot be put into blocks; the call runs dense then."""


@dataclass(frozen=True)
class SparseCall:
    """One attention call, its tokens in the order of the arrangement.

    Attributes:
        query, key, value: (B, S, H, D) with text and image tokens in separate blocks.
        sizes: (1 or B, N) int32, the tokens that count in each block.
        image, text: which blocks are image and which are text, as slices of the blocks.
        light: output and log-sum-exp, (B, S, H, D) and (B, H, S), of all queries over the keys that are not hidden but
            weigh less, where there are such; to `sizes` they do not count.
        prior: who adds the blocks that are not exact, where it is not a tail.
        exchange: where several processes have the heads among them, how; the tensors have those of this process.
    """

    moment: Moment
    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    sizes: Tensor
    image: slice
    text: slice
    always: Tensor | None
    block_size: int
    scale: float | None
    light: tuple[Tensor, Tensor] | None = None
    prior: Prior | None = None
    exchange: HeadExchange | None = None

    def rows(self, blocks: slice) -> slice:
        """The tokens of some blocks."""
        return slice(blocks.start * self.block_size, min(blocks.stop * self.block_size, self.query.shape[1]))

    @property
    def text_blocks(self) -> Tensor:
        """(B, 1): how many blocks of text each sample has; blocks of padding alone buy no exact image blocks."""
        return (self.sizes[:, self.text] > 0).sum(1, keepdim=True)

    @property
    def image_sizes(self) -> Tensor:
        """(B, NQ): the tokens that count in each block of the image."""
        return self.sizes[:, self.image]

    @property
    def image_query(self) -> Tensor:
        """The queries of the image tokens, (B, S_image, H, D)."""
        return self.query[:, self.rows(self.image)]

    def statistics(self, *, first_order: bool = False, spread: bool = False) -> BlockStatistics:
        """Mean keys and values of all blocks, and what else is asked for."""
        return block_statistics(
            self.key, self.value, self.block_size, self.sizes, first_order=first_order, spread=spread
        )

    def attend(self, chosen: Blocks, tail: Tail, statistics: BlockStatistics | None) -> Tensor:
        """Attention of the image queries over the chosen blocks and the tail, or all blocks where a prior is to take
        the others up; of the text queries over everything."""
        if self.prior is not None:
            return self.beside_text(self.prior.refresh(self, chosen))
        given: dict[str, Any] = {}
        if tail != "none" and statistics is not None:
            given = {"mean_key": statistics.mean_key, "mean_value": statistics.mean_value}
            if tail == "hybrid":
                given["first_order"] = statistics.first_order
        return self.beside_text(self.over(chosen, **given)[0])

    def over(self, chosen: Blocks, **given: Any) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of the image queries over the chosen blocks, among which those of the text are, and
        what else is given to the softmax."""
        return self._beside_light(self.over_rest(chosen, **given), self.rows(self.image))

    def over_rest(self, chosen: Blocks, **given: Any) -> tuple[Tensor, Tensor]:
        """The same where those of the text are not among the blocks."""
        blocks, counts = chosen
        return block_attention(self.image_query, self.key, self.value, blocks, counts, **self._shared, **given)

    def dense(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of some queries over everything."""
        part = dense_attention(self.query[:, rows], self.key, self.value, **self._shared)
        return self._beside_light(part, rows)

    def _beside_light(self, part: tuple[Tensor, Tensor], rows: slice) -> tuple[Tensor, Tensor]:
        """A part of the softmax of some queries, joined by that of the keys which weigh less."""
        if self.light is None:
            return part
        (out, lse), (other, other_lse) = part, (self.light[0][:, rows], self.light[1][:, :, rows])
        both = torch.logaddexp(lse, other_lse)
        share, other_share = ((x - both).exp().transpose(1, 2)[..., None] for x in (lse, other_lse))
        return (out * share + other * other_share).to(out.dtype), both

    def mass(self, lse: Tensor, mean_key: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The share of attention that the image queries, whose log-sum-exp is (B, H, S_image), give to each block, and
        what one token of mean key would get in its stead, where there are such; both (B, H, NQ, N)."""
        return block_mass(
            self.image_query,
            self.key,
            lse,
            self.block_size,
            self.sizes,
            query_sizes=self.image_sizes,
            mean_key=mean_key,
            scale=self.scale,
        )

    def beside_text(self, out: Tensor) -> Tensor:
        """The result of the image queries joined by that of the text queries, which are dense."""
        if self.text.stop == self.text.start:
            return out
        words, _ = self.dense(self.rows(self.text))
        return torch.cat([words, out] if self.text.start == 0 else [out, words], 1)

    @property
    def _shared(self) -> dict[str, Any]:
        return {"block_size": self.block_size, "sizes": self.sizes, "scale": self.scale}


def put_into_blocks(
    moment: Moment,
    layer: int,
    tensors: tuple[Tensor, Tensor, Tensor],
    call: AttentionCall,
    lengths: Tensor | None,
    block_size: int,
    tiling: bool,
    exchange: HeadExchange | None = None,
    known: BlockSizes | None = None,
) -> tuple[Arrangement, SparseCall]:
    """The query, key and value of a call in blocks of the moment's grid and of its text; or raises NotInBlocks.

    `lengths`: (B,), how many text tokens of each sample count; all where None.
    `exchange`: how the tensors, which have all heads of some tokens, come to have all tokens of some heads.
    `known`: where the sizes of the blocks come from; made for this call where None.
    """
    query, key, value = of_one_dtype(tensors)
    batch, tokens = query.shape[:2]
    grid, words = moment.grid, call.text_length
    if exchange is not None:
        tokens, words = exchange.all_tokens, exchange.all_words
    if grid is None or words is None or math.prod(grid) + words != tokens:
        raise NotInBlocks(f"the {tokens} tokens are not one grid of image tokens and {words or 0} of text")
    image = math.prod(grid)
    if image < FEWEST_BLOCKS * block_size:
        raise NotInBlocks(f"{image} image tokens are fewer than two blocks of {block_size}")
    arrangement = arrange(
        grid,
        text=call.text if words else "none",
        text_length=words,
        block_size=block_size,
        tile=None if tiling else RASTER,
        device=query.device,
    )
    sizes = (known or BlockSizes()).of(moment, arrangement, lengths, batch)
    if exchange is not None:
        query, key, value = exchange.gather(query, key, value)
    light = None
    if call.counting is not None and lengths is not None:
        light = _light((arrangement.apply(query), key[:, :words], value[:, :words]), lengths, block_size, call.scale)
    query, key, value = (arrangement.apply(tensor) for tensor in (query, key, value))
    return arrangement, SparseCall(
        moment=moment,
        layer=layer,
        query=query,
        key=key,
        value=value,
        sizes=sizes,
        image=arrangement.image,
        text=arrangement.text,
        always=arrangement.text_blocks if words else None,
        block_size=block_size,
        scale=call.scale,
        exchange=exchange,
        light=light,
    )


def _light(
    tensors: tuple[Tensor, Tensor, Tensor], lengths: Tensor, block_size: int, scale: float | None
) -> tuple[Tensor, Tensor]:
    """What all queries, behind whose text the image stands, get from the padding of their text: for those that count
    its scores are one lower than those of what counts, for queries of the padding itself they are not."""
    query, key, value = tensors
    words = key.shape[1]
    # The padding stands at the end, and sizes count from the start.
    starts = torch.arange(0, words, block_size, device=key.device)
    padding = (words - lengths)[:, None].expand(len(key), 1)
    sizes = (padding - starts).clamp(0, block_size).to(torch.int32)
    key, value = key.flip(1), value.flip(1)
    out, lse = dense_attention(query, key, value, block_size=block_size, sizes=sizes, scale=scale)
    rows = torch.arange(query.shape[1], device=key.device)
    counts = (rows < lengths[:, None]) | (rows >= words)
    return out, lse - counts.to(lse.dtype)[:, None]


def of_one_dtype(tensors: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors as torch's own attention would take them under autocast; or raises NotInBlocks."""
    query, key, value = tensors
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        short = torch.get_autocast_dtype(kind)
        query, key, value = (tensor if tensor.dtype == torch.float64 else tensor.to(short) for tensor in tensors)
    if not query.dtype == key.dtype == value.dtype or query.dtype not in DTYPES:
        names = " and ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
        raise NotInBlocks(f"there are no kernels for tensors in {names}")
    return query, key, value


def require_choice(moment: Moment, call: AttentionCall, heads: int, density: float, block_size: int) -> None:
    """Raises NotInBlocks where the call, of so many heads, has a part of the tokens alone and cannot get the others, or
    so few tokens that all of their blocks are kept."""
    reason = why_not_by_heads(call.parallel, heads) if call.spread else None
    if reason is not None:
        raise NotInBlocks(f"context parallelism spreads the tokens over devices, and blocks need all of them: {reason}")
    blocks = 0 if moment.grid is None else number_of_blocks(math.prod(moment.grid), block_size)
    if blocks > 1 and kept_number(density, blocks) == blocks:
        raise NotInBlocks(f"density={density} of {blocks} blocks of {block_size} image tokens is all of them")


def text_lengths(call: AttentionCall, tokens: int) -> Tensor:
    """How many text tokens count in each sample, (B,) int32, where a mask hides the right padding of a text and no
    more; or raises NotInBlocks."""
    mask, words = call.mask, call.text_length or 0
    if call.counting is not None:
        counting = call.counting
        if mask is None or not mask.is_floating_point() or counting.shape[1:] != (tokens,) or call.text != "prefix":
            raise NotInBlocks("the mask is not the padding of a text before the image")
        if not bool(((counting == 0) | (counting == 1)).all()):
            raise NotInBlocks("the mask weighs tokens by other numbers than one and zero")
        text, whole = counting[:, :words] == 1, counting[:, words:] == 1
    elif call.text_mask is not None:
        text, whole = call.text_mask.bool(), None
    elif mask is None or mask.dtype != torch.bool or mask.shape[1:] != (1, 1, tokens) or call.text == "none":
        raise NotInBlocks("the mask is not the padding of a text beside the image")
    else:
        valid = mask[:, 0, 0]
        start = 0 if call.text == "prefix" else tokens - words
        text, whole = valid[:, start : start + words], torch.cat([valid[:, :start], valid[:, start + words :]], 1)
    lengths = text.sum(1)
    padding = torch.arange(text.shape[1], device=text.device) >= lengths[:, None]
    wrong = (text == padding).any()
    # One question to the device for both conditions.
    if bool(wrong if whole is None else wrong | ~whole.all()):
        raise NotInBlocks("the mask hides more than the padding of the text")
    return lengths.to(torch.int32)


def highest_blocks(call: SparseCall, scores: Tensor, density: float) -> Blocks:
    """In every row the density's share of the image's blocks, at least one, and all blocks of the text."""
    image, words = kept_number(density, call.image.stop - call.image.start), call.text.stop - call.text.start
    keep = image if words == 0 else image + call.text_blocks.expand(-1, scores.shape[1])
    return top_blocks(scores, keep, always=call.always, sizes=call.sizes, width=image + words)


def block_scores(call: SparseCall, mean_key: Tensor) -> Tensor:
    """(B, H, NQ, N) float32: scaled products of mean queries of the image and mean keys of all blocks."""
    mean_query = block_means(call.image_query, call.block_size, call.image_sizes)
    heads = mean_query.shape[2] // mean_key.shape[2]
    scale = call.query.shape[-1] ** -0.5 if call.scale is None else call.scale
    return scale * mean_query.transpose(1, 2) @ mean_key.repeat_interleave(heads, 2).permute(0, 2, 3, 1)


def exact_share(call: SparseCall, counts: Tensor) -> Tensor:
    """The share of key blocks that the queries of the image attended exactly, (1,)."""
    blocks = (call.sizes > 0).sum(1)[:, None, None]
    return (counts / blocks).mean()[None]
