"""The order of tokens in which sparse attention runs: blocks of image tokens are compact patches, text has its own.

A block counts as a whole in sparse attention, so that its tokens should be alike. In the row-major order of a model a
block of 64 tokens is a strip; here it is a patch of 8 x 8 tokens of a picture or 4 x 4 x 4 of a film.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Arrangement", "arrange", "default_tile", "let_go_of_arrangements"]

Grid = tuple[int, int, int]
Text = Literal["none", "prefix", "suffix"]

RASTER: Grid = (1, 1, 1)


@dataclass(frozen=True, eq=False)
class Arrangement:
    """An order of a sequence's tokens, cut into blocks; made by `arrange`, shared, and never to be changed.

    Attributes:
        gather: int64 (A,), where in the sequence each token of the arrangement comes from. Padding, which only stands
            between the two kinds of token, repeats the last token of its kind.
        scatter: int64 (S,), where in the arrangement each token of the sequence is.
        sizes: int32 (N,), how many tokens at the start of each block are not padding.
        text_blocks: bool (N,), which blocks hold text.
        image, text: the same as slices of the blocks.
        identity: nothing is moved or padded.
        length: S, tokens of the sequence.
        text_length: how many of them are text.
        block_size: tokens of a block; the last may be short.
    """

    gather: Tensor
    scatter: Tensor
    sizes: Tensor
    text_blocks: Tensor
    image: slice
    text: slice
    identity: bool
    length: int
    text_length: int
    block_size: int

    def apply(self, x: Tensor) -> Tensor:
        """(B, S, ...) in the order of the model to (B, A, ...) in this order; a copy unless `identity`.

        Raises ValueError when x has not S tokens.
        """
        return self._select(x, self.gather, self.length)

    def restore(self, x: Tensor) -> Tensor:
        """(B, A, ...) in this order to (B, S, ...) in the order of the model, without padding: the inverse."""
        return self._select(x, self.scatter, self.gather.numel())

    def with_text_lengths(self, lengths: Tensor) -> Tensor:
        """`sizes` for a batch whose texts are padded on the right: int32 (B, N).

        `lengths`, integers of shape (B,), says how many text tokens of each sample count; more than there are counts
        as all. Raises ValueError without text.
        """
        if not self.text_length:
            raise ValueError("with_text_lengths takes an arrangement with text; this one has none")
        starts = torch.arange(self.text.stop - self.text.start, device=self.sizes.device) * self.block_size
        counted = (lengths.to(starts.device)[:, None] - starts).clamp(min=0)
        sizes = self.sizes.repeat(lengths.shape[0], 1)
        sizes[:, self.text] = torch.minimum(counted, sizes[:, self.text]).to(torch.int32)
        return sizes

    def _select(self, x: Tensor, index: Tensor, length: int) -> Tensor:
        if x.shape[1] != length:
            raise ValueError(f"this arrangement takes {length} tokens: a tensor of shape {tuple(x.shape)} has not")
        return x if self.identity else x.index_select(1, index)


def default_tile(grid: Grid, block_size: int) -> Grid:
    """The patch that a block should be, in tokens of (time, height, width): as near to a square or cube as may be.

    Blocks of 64 are (1, 8, 8) in a picture and (4, 4, 4) in a film, blocks of 128 (1, 8, 16) and (4, 4, 8).
    """
    exponent = block_size.bit_length() - 1
    frames = 0 if grid[0] == 1 else exponent // 3
    rows = (exponent - frames) // 2
    return 2**frames, 2**rows, block_size // 2 ** (frames + rows)


def arrange(
    grid: Grid,
    *,
    text: Text = "none",
    text_length: int = 0,
    block_size: int = 64,
    tile: Grid | None = None,
    device: torch.device | str = "cpu",
) -> Arrangement:
    """The arrangement of a sequence of image tokens, and text before ("prefix") or behind ("suffix") them.

    The image is halved again and again, each time across the axis that is longest in units of the tile, and at a whole
    number of blocks, until a block is left. Where the tile divides the grid, the blocks are exactly its tiles; where it
    does not, they are patches of about its shape, and still all of them but the last are full.

    Args:
        grid: image tokens along (time, height, width); the sequence has them row-major.
        text: where the text stands. It keeps its order and starts at a border of blocks.
        text_length: tokens of text, 0 with "none".
        block_size: tokens of a block.
        tile: the shape of a patch, of `block_size` tokens; `default_tile` without one. (1, 1, 1) leaves the image
            tokens in their order.
        device: where the tensors of the result are.

    Returns:
        The arrangement; equal calls give the same object, for the last 16 different ones.

    Raises:
        ValueError: a size is below 1, the tile has not `block_size` tokens, or text and its length disagree.
    """
    if min(grid) < 1 or block_size < 1:
        raise ValueError(f"arrange takes sizes of 1 or more: grid is {tuple(grid)}, block_size is {block_size}")
    if text_length < 0 or (text == "none") != (text_length == 0):
        raise ValueError(f"arrange takes text 'none' with text_length 0 alone: {text!r} has {text_length}")
    if tile is not None and tile != RASTER and (min(tile) < 1 or math.prod(tile) != block_size):
        raise ValueError(
            f"arrange takes a tile of block_size = {block_size} tokens, or (1, 1, 1) for none: {tuple(tile)} "
            f"has {math.prod(tile)}"
        )
    sizes = (int(grid[0]), int(grid[1]), int(grid[2]))
    shape = tuple(tile) if tile is not None else default_tile(sizes, block_size)
    return _arranged(sizes, text, int(text_length), int(block_size), shape, torch.device(device))


def let_go_of_arrangements() -> None:
    """Forgets all arrangements, which hold 16 bytes of their device for each token; the next calls make them anew."""
    _arranged.cache_clear()


@lru_cache(maxsize=16)
def _arranged(
    grid: Grid, text: Text, text_length: int, block_size: int, tile: Grid, device: torch.device
) -> Arrangement:
    # A run in inference mode must not leave tensors behind that a later one outside of it cannot use.
    with torch.inference_mode(False), torch.no_grad():
        return _build(grid, text, text_length, block_size, tile, device)


def _build(grid: Grid, text: Text, text_length: int, block_size: int, tile: Grid, device: torch.device) -> Arrangement:
    number = math.prod(grid)
    picture = _image_order(grid, block_size, tile) + (text_length if text == "prefix" else 0)
    words = torch.arange(text_length, device="cpu") + (number if text == "suffix" else 0)
    segments = [words, picture] if text == "prefix" else [picture, words]
    padded = [_padded(segments[0], block_size) if len(segments[1]) else segments[0], segments[1]]
    gather = torch.cat(padded)
    sizes = torch.cat([_sizes(len(segment), block_size) for segment in segments])
    scatter = torch.empty(number + text_length, dtype=torch.int64, device="cpu")
    at = 0
    for segment, filled in zip(segments, padded, strict=True):
        scatter[segment] = torch.arange(at, at + len(segment), device="cpu")
        at += len(filled)
    of_text = -(-text_length // block_size)
    blocks = len(sizes)
    text_slice = slice(0, of_text) if text == "prefix" else slice(blocks - of_text, blocks)
    image_slice = slice(of_text, blocks) if text == "prefix" else slice(0, blocks - of_text)
    text_blocks = torch.zeros(blocks, dtype=torch.bool, device="cpu")
    text_blocks[text_slice] = True
    return Arrangement(
        gather=gather.to(device),
        scatter=scatter.to(device),
        sizes=sizes.to(device),
        text_blocks=text_blocks.to(device),
        image=image_slice,
        text=text_slice,
        identity=gather.tolist() == list(range(number + text_length)),
        length=number + text_length,
        text_length=text_length,
        block_size=block_size,
    )


def _padded(segment: Tensor, block_size: int) -> Tensor:
    missing = -len(segment) % block_size
    return torch.cat([segment, segment[-1:].expand(missing)])


def _sizes(length: int, block_size: int) -> Tensor:
    starts = torch.arange(0, length, block_size, device="cpu")
    return (length - starts).clamp(max=block_size).to(torch.int32)


def _image_order(grid: Grid, block_size: int, tile: Grid) -> Tensor:
    tokens = torch.arange(math.prod(grid), device="cpu")
    if tile == RASTER:
        return tokens
    parts = [tokens]
    while any(len(part) > block_size for part in parts):
        parts = [half for part in parts for half in _halves(part, grid, block_size, tile)]
    return torch.cat(parts)


def _halves(part: Tensor, grid: Grid, block_size: int, tile: Grid) -> list[Tensor]:
    """Cuts tokens, ascending ids, into two parts of whole blocks across the axis that has the most tiles."""
    blocks = -(-len(part) // block_size)
    if blocks == 1:
        return [part]
    _, height, width = grid
    along = (part // (height * width), part // width % height, part % width)
    first = [int(c.min()) for c in along]
    extent = [int(c.max()) - low + 1 for c, low in zip(along, first, strict=True)]
    axis = max(range(3), key=lambda a: (extent[a] / tile[a], a))
    cut = _cut(extent, axis, len(part), blocks, block_size, tile) * block_size
    order = along[axis].argsort(stable=True)
    return [part[order[:cut].sort().values], part[order[cut:].sort().values]]


def _cut(extent: list[int], axis: int, number: int, blocks: int, block_size: int, tile: Grid) -> int:
    """How many blocks the first half gets: in the middle third such that the cut is plane, at best between tiles."""
    if math.prod(extent) == number:
        plane = number // extent[axis]
        for step in (tile[axis], 1):
            layers = step * plane
            even = [
                m
                for m in range(-(-blocks // 3), blocks * 2 // 3 + 1)
                if 0 < m < blocks and m * block_size % layers == 0
            ]
            if even:
                return min(even, key=lambda m: abs(2 * m - blocks))
    return blocks // 2
