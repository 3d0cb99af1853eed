"""The block rotation on a CPU: a piece at a time is turned so that each stage adds long runs of neighbours."""

import torch
from torch import Tensor

from accel.kernels.rotation.reference import BLOCK

# Elements of a piece: few enough that its two copies stay in the cache, enough that calls cost little.
_PIECE = 1 << 17
_SIGNS = torch.tensor([[1.0], [-1.0]], dtype=torch.float32, device="cpu")


def rotate(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    result = torch.empty(x.shape, dtype=dtype)
    for piece in pieces(x, _PIECE):
        turned_back(rotated_blocks(x[piece]).mul_(scale), result[piece])
    return result


def pieces(x: Tensor, numbers: int) -> list[slice]:
    """The rows of a matrix, so many numbers at a time; none where there are no numbers."""
    rows, channels = x.shape
    step = max(numbers // max(channels, 1), 1)
    return [slice(start, start + step) for start in range(0, rows if channels else 0, step)]


def turned(x: Tensor, width: int) -> Tensor:
    """Each run of `width` channels of a few rows as a column, in float32 and in memory of its own."""
    columns = x.reshape(-1, width).float().t()
    return torch.empty(columns.shape, dtype=torch.float32).copy_(columns)


def turned_back(columns: Tensor, rows: Tensor) -> None:
    """Writes columns, one behind the other, into rows that lie together."""
    rows.view(columns.shape[::-1]).copy_(columns.t())


def rotated_blocks(x: Tensor) -> Tensor:
    """x H in float32 of a few rows, in memory of its own: (channel of a block, block)."""
    values = turned(x, BLOCK)
    other = torch.empty_like(values)
    apart = 1
    while apart < BLOCK:
        pairs, sums = (memory.view(BLOCK // (2 * apart), 2, -1) for memory in (values, other))
        # The sum and the difference in one pass: a product with 1 or -1 is exact.
        torch.addcmul(pairs[:, :1], pairs[:, 1:], _SIGNS, out=sums)
        values, other = other, values
        apart *= 2
    return values
