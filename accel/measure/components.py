"""Connected pieces of masks, frame by frame, without scipy."""

import torch
from torch import Tensor


def _roots(edges: Tensor, count: int) -> Tensor:
    """For nodes 0..count-1 joined by `edges` (2, E), the smallest node of each node's component, (count,).

    Every round hangs each root onto the smallest root beside it and then flattens the trees, so a few rounds
    are enough (after Shiloach and Vishkin, "An O(log n) parallel connectivity algorithm", 1982).
    """
    root = torch.arange(count, device=edges.device)
    while True:
        ends = root[edges]
        apart = ends[0] != ends[1]
        edges, ends = edges[:, apart], ends[:, apart]
        if edges.shape[1] == 0:
            return root
        low, high = ends.amin(0), ends.amax(0)
        root.scatter_reduce_(0, high, low, "amin")
        while not torch.equal(flat := root[root], root):
            root = flat


def pieces(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Splits each frame's mask into pieces whose pixels touch by their sides.

    Args:
        mask: (T, H, W) bool.

    Returns:
        The largest piece of each frame, (T, H, W) bool (empty where the frame's mask is; the first in reading
        order of several that are equal), and the sizes of all pieces in pixels, (T, H*W) int64: each at the
        first pixel of its piece, with 0 elsewhere.
    """
    frames, height, width = mask.shape
    node = torch.full(mask.shape, -1, dtype=torch.int64, device=mask.device)
    count = int(mask.sum())
    node[mask] = torch.arange(count, device=mask.device)
    beside = mask[:, :, 1:] & mask[:, :, :-1]
    below = mask[:, 1:] & mask[:, :-1]
    edges = torch.cat(
        [
            torch.stack([node[:, :, :-1][beside], node[:, :, 1:][beside]]),
            torch.stack([node[:, :-1][below], node[:, 1:][below]]),
        ],
        dim=1,
    )
    first_pixel = mask.flatten().nonzero().flatten()[_roots(edges, count)]
    sizes = torch.bincount(first_pixel, minlength=mask.numel()).view(frames, height * width)
    offset = torch.arange(frames, device=mask.device) * height * width
    largest = torch.zeros_like(mask)
    largest[mask] = first_pixel == (sizes.argmax(1) + offset)[mask.nonzero()[:, 0]]
    return largest, sizes
