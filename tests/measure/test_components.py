"""Connected pieces against a flood fill written out."""

import pytest
import torch

from accel.measure.components import pieces


def flood_fill(frame):
    """The pieces of one (H, W) mask as sets of pixels, found one pixel at a time."""
    left = {tuple(pixel) for pixel in frame.nonzero().tolist()}
    found = []
    while left:
        piece, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            piece.add((y, x))
            beside = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= beside
            front.extend(beside)
        found.append(piece)
    return found


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.6, 0.8, 1.0])
def test_random_masks_against_a_flood_fill(share):
    mask = torch.rand(4, 17, 23, generator=torch.Generator().manual_seed(int(10 * share))) < share
    largest, sizes = pieces(mask)
    for frame in range(4):
        expected = flood_fill(mask[frame])
        assert sorted(sizes[frame][sizes[frame] > 0].tolist()) == sorted(len(piece) for piece in expected)
        got = {tuple(pixel) for pixel in largest[frame].nonzero().tolist()}
        most = max(map(len, expected), default=0)
        assert got in [piece for piece in expected if len(piece) == most] or (most == 0 and not got)


def test_frames_are_kept_apart():
    """Neither the same pixel in two frames nor the last of a frame and the first of the next touch."""
    mask = torch.ones(3, 5, 5, dtype=torch.bool)
    mask[1] = False
    mask[1, 4, 4] = mask[1, 0, 0] = True
    largest, sizes = pieces(mask)
    assert largest.sum((1, 2)).tolist() == [25, 1, 25]
    assert (sizes > 0).sum(1).tolist() == [1, 2, 1]
    assert largest[1, 0, 0] and not largest[1, 4, 4]


def test_a_long_winding_piece_is_one_piece():
    snake = torch.zeros(61, 61, dtype=torch.bool)
    snake[::2] = True
    snake[1::4, -1] = True
    snake[3::4, 0] = True
    largest, sizes = pieces(snake[None])
    assert torch.equal(largest[0], snake)
    assert sizes[sizes > 0].tolist() == [int(snake.sum())]
