"""The block rotation on a CPU: a piece at a time is turned so that each stage adds long runs of neighbours."""

import torch
from torch import Tensor

from accel.kernels.rotation.reference import BLOCK

# Elements of a piece: few enough that its two copies stay in the cache.
_PIECE = 1 << 16


def rotate(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    result = torch.empty(x.shape, dtype=dtype)
    rows = max(_PIECE // max(x.shape[1], 1), 1)
    for start in range(0, x.shape[0], rows):
        result[start : start + rows] = rotated(x[start : start + rows]).mul_(scale)
    return result


def rotated(x: Tensor) -> Tensor:
    """x H in float32 of a few rows, in memory of its own."""
    # (channel of a block, block): the channels that are added lie in rows.
    blocks = x.reshape(-1, BLOCK).t()
    values = torch.empty(blocks.shape, dtype=torch.float32).copy_(blocks)
    other = torch.empty_like(values)
    apart = 1
    while apart < BLOCK:
        pairs, sums = (memory.view(BLOCK // (2 * apart), 2, -1) for memory in (values, other))
        torch.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        torch.sub(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        values, other = other, values
        apart *= 2
    return values.t().reshape(x.shape)
