"""The launches of block attention's Triton kernels, with as few copies of their arguments as strides allow."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from accel.kernels.block_attention.tiles import Tile, tile_for
from accel.kernels.block_attention.triton_kernels import attend, prepare_lists
from accel.kernels.blocks import number_of_blocks, token_counts
from accel.kernels.forms import on_device

# Entries of a list that one step of the preparation takes.
CHUNK = 128
# Rows of the first-order matrix that one step takes.
DEPTH = 32


class _Beside(NamedTuple):
    """What is attended to besides the listed blocks."""

    mean_key: Tensor | None = None
    mean_value: Tensor | None = None
    first_order: Tensor | None = None
    prior: Tensor | None = None
    prior_lse: Tensor | None = None


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    counts: Tensor,
    block_size: int,
    sizes: Tensor | None,
    mean_key: Tensor | None,
    mean_value: Tensor | None,
    first_order: Tensor | None,
    prior: Tensor | None,
    prior_lse: Tensor | None,
    scale: float,
    *,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """As the other forms; `tile` is for whoever looks for a better table, which decides without it."""
    room = _room(key, sizes, block_size)
    ordered, tail = _has_short(key, sizes, block_size), mean_key is not None
    blocks, shorts, fulls, marks = _prepared(blocks, counts, room, ordered, tail, block_size)
    if sizes is not None and mean_key is not None and mean_value is not None:
        # A block of size 0 may have anything for its mean, and 0 * NaN is NaN.
        exists = room[..., None, None] > 0
        mean_key, mean_value = torch.where(exists, mean_key, 0.0), torch.where(exists, mean_value, 0.0)
    beside = _Beside(
        None if mean_key is None else mean_key.to(query.dtype).contiguous(),
        None if mean_value is None else mean_value.to(query.dtype).contiguous(),
        None if first_order is None else first_order.contiguous(),
        None if prior is None else _dense_rows(prior),
        None if prior_lse is None else prior_lse.contiguous(),
    )
    return _launch(query, key, value, blocks, shorts, fulls, marks, room, beside, block_size, ordered, scale, tile)


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, sizes: Tensor | None, block_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = query.shape
    number, short = number_of_blocks(key.shape[1], block_size), _has_short(key, sizes, block_size)
    room = _room(key, sizes, block_size)
    # One list for each element of the batch, which all its heads and rows read.
    blocks = torch.arange(number, dtype=torch.int32, device=query.device).expand(batch, 1, 1, -1)
    counts = torch.full((batch, 1, 1), number, dtype=torch.int32, device=query.device)
    blocks, shorts, fulls, _ = _prepared(blocks, counts, room, short, False, block_size)
    rows = (batch, heads, number_of_blocks(length, block_size))
    blocks, shorts, fulls = blocks.expand(*rows, -1), shorts.expand(rows), fulls.expand(rows)
    return _launch(query, key, value, blocks, shorts, fulls, None, room, _Beside(), block_size, short, scale)


def _has_short(key: Tensor, sizes: Tensor | None, block_size: int) -> bool:
    """Whether there may be blocks that are not full."""
    return sizes is not None or key.shape[1] % block_size != 0


def _room(key: Tensor, sizes: Tensor | None, block_size: int) -> Tensor:
    counts = token_counts(sizes, key.shape[0], key.shape[1], block_size, key.device)
    return counts.to(torch.int32).contiguous()


def _dense_rows(x: Tensor) -> Tensor:
    """The tensor, copied only where the numbers of a row do not lie next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _prepared(
    blocks: Tensor, counts: Tensor, room: Tensor, order: bool, mark: bool, block_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The lists, how many short and how many full blocks they have, and with `mark` a bit for each listed block.

    With `order`, short blocks stand at the start of a list and full ones at its end.
    """
    blocks = _dense_rows(blocks)
    if not order and not mark:
        return blocks, counts, counts, None
    batch, heads, rows, width = blocks.shape
    number = room.shape[1]
    words = triton.cdiv(number, 32)
    ordered, shorts, fulls, marks = blocks, counts, counts, None
    if order:
        ordered = torch.empty(blocks.shape, dtype=torch.int32, device=blocks.device)
        shorts, fulls = torch.empty(2, batch, heads, rows, dtype=torch.int32, device=blocks.device)
    if mark:
        marks = torch.zeros(batch, heads, rows, words, dtype=torch.int32, device=blocks.device)
    with on_device(blocks):
        prepare_lists[(rows, batch * heads)](
            blocks,
            counts,
            room,
            ordered,
            shorts,
            fulls,
            marks,
            *blocks.stride()[:3],
            *counts.stride(),
            heads,
            number,
            width,
            words,
            BLOCK=block_size,
            ORDER=order,
            MARK=mark,
            CHUNK=CHUNK,
            num_warps=1,
            enable_fp_fusion=False,
        )
    return ordered, shorts, fulls, marks


def _launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    shorts: Tensor,
    fulls: Tensor,
    marks: Tensor | None,
    room: Tensor,
    beside: _Beside,
    block_size: int,
    ordered: bool,
    scale: float,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    batch, length, heads, size = query.shape
    rows, width = blocks.shape[2:]
    query, key, value = (_dense_rows(x) for x in (query, key, value))
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=query.device)
    with on_device(query):
        head, usual = tile_for(query.dtype, size, block_size)
        tile = tile or usual
        attend[(rows, batch * heads)](
            query,
            key,
            value,
            out,
            lse,
            blocks,
            shorts,
            fulls,
            marks,
            room,
            *beside,
            scale,
            *query.stride()[:3],
            *key.stride()[:3],
            *value.stride()[:3],
            *blocks.stride()[:3],
            *fulls.stride(),
            *((0, 0, 0) if beside.prior is None else beside.prior.stride()[:3]),
            heads,
            heads // key.shape[2],
            length,
            room.shape[1],
            width,
            triton.cdiv(room.shape[1], 32),
            SIZE=size,
            HEAD=head,
            BLOCK=block_size,
            COLUMNS=tile.columns,
            STAGES=tile.stages,
            TOKENS=tile.tokens,
            DEPTH=DEPTH,
            ORDERED=ordered,
            TAIL=beside.mean_key is not None,
            FIRST_ORDER=beside.first_order is not None,
            PRIOR=beside.prior is not None,
            PRECISION="ieee" if query.dtype == torch.float32 else None,
            num_warps=tile.warps,
            num_stages=tile.stages,
            maxnreg=tile.registers,
            enable_fp_fusion=True,
        )
    return out, lse
