"""Block statistics in plain PyTorch: the specification that the other forms are tested against."""

import torch
from torch import Tensor

from accel.kernels import blocks


def block_means(x: Tensor, block_size: int, sizes: Tensor | None) -> Tensor:
    return _means(*_in_blocks(x, block_size, sizes))


def block_statistics(
    key: Tensor, value: Tensor, block_size: int, sizes: Tensor | None, first_order: bool, spread: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    keys, valid = _in_blocks(key, block_size, sizes)
    values, _ = _in_blocks(value, block_size, sizes)
    mean_key, mean_value = _means(keys, valid), _means(values, valid)
    # Values less their mean give the same sum, since centred keys add up to zero: only its rounding is better.
    centred = [torch.where(valid, x - mean[:, :, None], 0.0) for x, mean in ((keys, mean_key), (values, mean_value))]
    # (batch, blocks, heads, head size of key, head size of value)
    matrices = torch.einsum("bnthd,bnthe->bnhde", *centred)
    tokens = valid.sum(dim=(1, 2)).clamp(min=1)[..., None]
    return (
        mean_key,
        mean_value,
        matrices.sum(dim=1) / tokens if first_order else None,
        torch.linalg.matrix_norm(matrices).transpose(1, 2).contiguous() if spread else None,
    )


def _in_blocks(x: Tensor, block_size: int, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """x as (batch, blocks, tokens, heads, head size), zero where no token counts, and where one does."""
    batch, length, heads, size = x.shape
    counts = blocks.token_counts(sizes, batch, length, block_size, x.device)
    missing = counts.shape[1] * block_size - length
    wide = torch.nn.functional.pad(x.to(torch.promote_types(x.dtype, torch.float32)), (0, 0, 0, 0, 0, missing))
    valid = torch.arange(block_size, device=x.device) < counts[..., None]
    valid = valid[..., None, None]
    return torch.where(valid, wide.view(batch, counts.shape[1], block_size, heads, size), 0.0), valid


def _means(x: Tensor, valid: Tensor) -> Tensor:
    return x.sum(dim=2) / valid.sum(dim=2).clamp(min=1)
