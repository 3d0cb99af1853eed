"""Sequences cut into blocks: what the operations on blocks share in checks, counts and masks.

A sequence (batch, tokens, heads, head size) is cut from its start into blocks of `block_size` tokens; the last may
be short. `sizes`, int32 of shape (batch, blocks), says how many tokens at the start of each block count; the others
are padding, which may hold anything.
"""

import math

import torch
from torch import Tensor

from accel.kernels import checks, forms

BLOCK_SIZES = (16, 32, 64, 128)
LARGEST_HEAD = 128


def number_of_blocks(length: int, block_size: int) -> int:
    return -(-length // block_size)


def resolved_scale(scale: float | None, head_size: int) -> float:
    """What scores are multiplied by: `scale`, or 1/sqrt(head size) without one."""
    return 1.0 / math.sqrt(head_size) if scale is None else float(scale)


def token_counts(sizes: Tensor | None, batch: int, length: int, block_size: int, device: torch.device) -> Tensor:
    """How many tokens of each block count, int64 of shape (batch, blocks), never more than the block has."""
    starts = torch.arange(0, length, block_size, device=device)
    room = (length - starts).clamp(max=block_size)
    if sizes is None:
        return room.expand(batch, -1)
    return torch.minimum(sizes.to(torch.int64), room).clamp(min=0)


def token_mask(counts: Tensor, length: int, block_size: int) -> Tensor:
    """Which tokens count, bool of shape (batch, length), by the counts of `token_counts`."""
    offsets = torch.arange(block_size, device=counts.device)
    return (offsets < counts[..., None]).flatten(1)[:, :length]


def listed_blocks(blocks: Tensor, counts: Tensor, number: int) -> Tensor:
    """Which key blocks are in the lists: bool of shape (batch, heads, query blocks, key blocks)."""
    listed = torch.arange(blocks.shape[-1], device=blocks.device) < counts[..., None]
    # What stands behind a list's end goes to a column that is cut off.
    columns = torch.where(listed, blocks, number).to(torch.int64)
    marks = torch.zeros(*blocks.shape[:-1], number + 1, dtype=torch.bool, device=blocks.device)
    return marks.scatter_(-1, columns, True)[..., :number]


def require_distinct(operation: str, listed: Tensor, counts: Tensor) -> None:
    """Raise ValueError unless a row's marks (of `listed_blocks`) are as many as its count; waits for the device."""
    if not torch.equal(listed.sum(-1), counts.to(torch.int64)):
        raise ValueError(f"{operation} takes lists of distinct blocks that are as long as counts says: one is not")


def require_block_size(operation: str, block_size: int) -> None:
    """Raise ValueError unless blocks of this size have a kernel."""
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"{operation} takes blocks of {_listed(BLOCK_SIZES)} tokens: block_size is {block_size}")


def require_sequences(operation: str, **tensors: Tensor) -> None:
    """Raise ValueError unless every tensor is (batch, tokens, heads, head size) with a head size that has a kernel.

    Raises TypeError for a float64 tensor, unless the reference form is to run: the others compute in float32.
    """
    for name, tensor in tensors.items():
        if tensor.ndim != 4:
            raise ValueError(
                f"{operation} takes tensors of shape (batch, tokens, heads, head size): "
                f"{name} has shape {tuple(tensor.shape)}"
            )
        size = tensor.shape[-1]
        if size % 8 or not 8 <= size <= LARGEST_HEAD:
            raise ValueError(
                f"{operation} takes head sizes that are multiples of 8 up to {LARGEST_HEAD}: {name} has {size}"
            )
        if tensor.dtype == torch.float64 and forms.select(tensor) != "reference":
            raise TypeError(f"{operation} takes float64 in the reference form alone: {name} is float64")


def require_grouped_heads(operation: str, query: Tensor, key: Tensor) -> None:
    """Raise ValueError unless key fits query: batch, head size and device, and heads that divide query's."""
    if query.device != key.device:
        raise ValueError(f"{operation} takes tensors of one device: query is on {query.device}, key is on {key.device}")
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3] or query.shape[2] % max(key.shape[2], 1):
        raise ValueError(
            f"{operation} takes query and key of one batch and head size, with query's heads a multiple of key's: "
            f"query has shape {tuple(query.shape)}, key has shape {tuple(key.shape)}"
        )


def require_sizes(operation: str, sizes: Tensor | None, sequence: Tensor, block_size: int, name: str = "sizes") -> None:
    """Raise unless `sizes` is None or int32 of shape (batch, blocks) on the device of the sequence."""
    if sizes is None:
        return
    if sizes.dtype != torch.int32:
        raise TypeError(f"{operation} takes {name} as int32: {name} is {checks.plain(sizes.dtype)}")
    wanted = (sequence.shape[0], number_of_blocks(sequence.shape[1], block_size))
    require_shape(operation, sequence, wanted, **{name: sizes})


def require_shape(operation: str, beside: Tensor, shape: tuple[int, ...], **tensors: Tensor) -> None:
    """Raise ValueError unless every tensor has this shape and is on the device of `beside`."""
    for name, tensor in tensors.items():
        if tensor.shape != shape:
            raise ValueError(f"{operation} takes {name} of shape {shape}: it has shape {tuple(tensor.shape)}")
        if tensor.device != beside.device:
            raise ValueError(
                f"{operation} takes tensors of one device: {name} is on {tensor.device}, "
                f"the sequence is on {beside.device}"
            )


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}"
