"""The order in which block-scaled tensor cores read the group scales: tiles of 128 rows and 4 groups.

A tile is 512 bytes: row r, group g of it lies at (r % 32) * 16 + (r // 32) * 4 + g, and tiles follow along the groups
first. It is what cuBLAS, CUTLASS and torch's SWIZZLE_32_4_4 call for.
"""

import torch
from torch import Tensor

from accel.kernels import checks

_ROWS, _GROUPS = 128, 4


def swizzle_scales(scales: Tensor) -> Tensor:
    """Group scales (rows, groups) of one byte each in tiles of 128x4, padded with zeros: flat, of the same dtype.

    Raises:
        ValueError: the scales are no matrix.
        TypeError: they are neither float8_e4m3fn nor uint8.
    """
    _require_bytes("swizzle_scales", scales)
    checks.require_matrix("swizzle_scales", scales=scales)
    rows, groups = scales.shape
    padding = (0, -groups % _GROUPS, 0, -rows % _ROWS)
    padded = torch.nn.functional.pad(scales.view(torch.uint8), padding)
    tiles = padded.view(padded.shape[0] // _ROWS, 4, 32, padded.shape[1] // _GROUPS, _GROUPS)
    return tiles.permute(0, 3, 2, 1, 4).flatten().view(scales.dtype)


def tiled_size(rows: int, groups: int) -> int:
    """How many bytes the tiles of that many rows and groups have."""
    return -(-rows // _ROWS) * -(-groups // _GROUPS) * _ROWS * _GROUPS


def unswizzle_scales(tiles: Tensor, rows: int, groups: int) -> Tensor:
    """The scales (rows, groups) that `swizzle_scales` put into tiles, contiguous.

    Raises:
        ValueError: the tiles are not those of that many rows and groups.
        TypeError: they are neither float8_e4m3fn nor uint8.
    """
    _require_bytes("unswizzle_scales", tiles)
    down, across = -(-rows // _ROWS), -(-groups // _GROUPS)
    checks.require_shape("unswizzle_scales", (tiled_size(rows, groups),), tiles=tiles)
    padded = tiles.view(torch.uint8).view(down, across, 32, 4, _GROUPS).permute(0, 3, 2, 1, 4)
    padded = padded.reshape(down * _ROWS, across * _GROUPS)
    return padded[:rows, :groups].contiguous().view(tiles.dtype)


def _require_bytes(operation: str, scales: Tensor) -> None:
    if scales.dtype not in (torch.float8_e4m3fn, torch.uint8):
        raise TypeError(f"{operation} takes float8_e4m3fn or uint8 scales: these are {checks.plain(scales.dtype)}")
