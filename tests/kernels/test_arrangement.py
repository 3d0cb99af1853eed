"""The order of tokens: compact blocks, nothing lost, text by itself."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from accel.kernels.arrangement import Arrangement, Grid, arrange, default_tile

# Every size along each axis meets many of the other two; 3,249 grids in all would take longer and show the same.
GRIDS = list(itertools.product(range(1, 10), range(1, 20), range(1, 20)))[::5]


def extents(arrangement: Arrangement, grid: Grid) -> torch.Tensor:
    """(N, 3): how far the image tokens of each block reach along each axis, ends included."""
    _, height, width = grid
    size = arrangement.block_size
    tokens = arrangement.gather - (arrangement.text_length if arrangement.text.start == 0 else 0)
    blocks = list(range(arrangement.image.start, arrangement.image.stop))
    counts = arrangement.sizes.tolist()
    found = []
    for block in blocks:
        ids = tokens[block * size : block * size + counts[block]]
        along = torch.stack((ids // (height * width), ids // width % height, ids % width))
        found.append(along.amax(1) - along.amin(1) + 1)
    return torch.stack(found)


def cube_side(grid: Grid, tokens: int) -> int:
    """The side of the smallest cube that holds so many tokens, in a grid that may be thinner than it."""
    return next(side for side in itertools.count(1) if math.prod(min(side, n) for n in grid) >= tokens)


def test_every_grid_is_packed_and_comes_back() -> None:
    for grid in GRIDS:
        arrangement = arrange(grid)
        number = math.prod(grid)
        assert torch.equal(arrangement.gather.sort().values, torch.arange(number)), grid
        assert torch.equal(arrangement.gather[arrangement.scatter], torch.arange(number)), grid
        blocks = -(-number // 64)
        assert arrangement.sizes.tolist() == [64] * (blocks - 1) + [number - 64 * (blocks - 1)], grid
        assert arrangement.identity == torch.equal(arrangement.gather, torch.arange(number)), grid


@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 3, 5), (3, 12, 16), (9, 19, 17), (1, 64, 64), (5, 1, 90)])
@pytest.mark.parametrize("text", ["none", "prefix", "suffix"])
@pytest.mark.parametrize("block_size", [16, 64])
def test_apply_and_restore(grid: Grid, text: str, block_size: int) -> None:
    words = 0 if text == "none" else 37
    arrangement = arrange(grid, text=text, text_length=words, block_size=block_size)  # type: ignore[arg-type]
    number = math.prod(grid)
    assert arrangement.length == number + words
    # Strided, as half of a fused projection is.
    x = torch.randn(2, number + words, 2 * 3, 8)[:, :, ::2]
    arranged = arrangement.apply(x)
    assert torch.equal(arrangement.restore(arranged), x)
    assert len(arrangement.sizes) == len(arrangement.text_blocks) == -(-arranged.shape[1] // block_size)
    assert int(arrangement.sizes.sum()) == number + words
    assert arrangement.text_blocks.tolist() == [
        arrangement.text.start <= n < arrangement.text.stop for n in range(len(arrangement.sizes))
    ]
    ids = arrangement.apply(torch.arange(number + words)[None])[0]
    is_text = ids < words if text == "prefix" else ids >= number
    for block, (size, of_text) in enumerate(zip(arrangement.sizes, arrangement.text_blocks, strict=True)):
        inside = slice(block * block_size, block * block_size + int(size))
        assert size > 0
        assert bool((is_text[inside] == of_text).all()), "text and image share no block"
    if words:
        start = arrangement.text.start * block_size
        first = 0 if text == "prefix" else number
        assert ids[start : start + words].tolist() == list(range(first, first + words)), "text keeps its order"


def test_blocks_are_tiles_where_tiles_divide_the_grid() -> None:
    for grid, tile, block_size in (
        ((1, 64, 64), (1, 8, 8), 64),
        ((1, 24, 40), (1, 8, 8), 64),
        ((16, 16, 16), (4, 4, 4), 64),
        ((12, 20, 28), (4, 4, 4), 64),
        ((1, 32, 48), (1, 8, 16), 128),
        ((8, 8, 8), (1, 8, 8), 64),
        ((2, 32, 32), (2, 4, 8), 64),
    ):
        found = extents(arrange(grid, block_size=block_size, tile=tile), grid)
        assert {tuple(row) for row in found.tolist()} == {tile}
    assert default_tile((1, 64, 64), 64) == (1, 8, 8)
    assert default_tile((21, 45, 80), 64) == (4, 4, 4)
    assert [math.prod(default_tile((t, 9, 9), b)) for t in (1, 9) for b in (16, 32, 64, 128)] == [16, 32, 64, 128] * 2


def test_blocks_of_every_grid_are_compact() -> None:
    for grid in GRIDS:
        found = extents(arrange(grid), grid)
        side = cube_side(grid, min(64, math.prod(grid)))
        assert int(found.max()) <= 2 * side, grid
        assert int(found.prod(1).max()) <= 2.5 * min(64, math.prod(grid)), grid


def test_large_ragged_grids_are_compact() -> None:
    """Wan at 480p and 720p, and a picture of odd size: on average a block's bounding box is hardly larger than it."""
    for grid, bound in (((21, 30, 52), 1.4), ((21, 45, 80), 1.5), ((1, 45, 83), 1.2)):
        found = extents(arrange(grid), grid)
        assert float(found.prod(1).float().mean()) / 64 < bound
        assert int(found.max()) <= (12 if grid[0] == 1 else 7)


def test_tile_of_one_token_keeps_the_order() -> None:
    raster = arrange((3, 12, 16), tile=(1, 1, 1))
    assert raster.identity
    x = torch.randn(1, 576, 1, 4)
    assert raster.apply(x) is x
    assert raster.restore(x) is x
    assert not arrange((3, 12, 16)).identity
    aligned = arrange((1, 8, 16), tile=(1, 1, 1), text="prefix", text_length=64)
    assert aligned.identity, "text that ends at a border needs no padding"
    assert not arrange((1, 8, 16), tile=(1, 1, 1), text="prefix", text_length=63).identity
    assert arrange((1, 8, 16), tile=(1, 1, 1), text="suffix", text_length=63).identity


def test_text_lengths_give_the_sizes_of_a_batch() -> None:
    arrangement = arrange((1, 5, 5), text="suffix", text_length=40, block_size=16)
    sizes = arrangement.with_text_lengths(torch.tensor([0, 3, 16, 33, 40, 99]))
    assert sizes.dtype == torch.int32
    assert sizes[:, arrangement.image].tolist() == [[16, 9]] * 6
    assert sizes[:, arrangement.text].tolist() == [
        [0, 0, 0], [3, 0, 0], [16, 0, 0], [16, 16, 1], [16, 16, 8], [16, 16, 8]
    ]  # fmt: skip
    assert torch.equal(arrangement.with_text_lengths(torch.tensor([40], dtype=torch.int32))[0], arrangement.sizes)
    prefix = arrange((1, 5, 5), text="prefix", text_length=20, block_size=16)
    assert prefix.with_text_lengths(torch.tensor([17])).tolist() == [[16, 1, 16, 9]]
    with pytest.raises(ValueError, match="has none"):
        arrange((1, 5, 5)).with_text_lengths(torch.tensor([3]))


def test_equal_calls_share_one_object_that_serves_inside_and_outside_of_inference_mode() -> None:
    with torch.inference_mode():
        made = arrange((2, 7, 11), text="prefix", text_length=5)
    assert arrange((2, 7, 11), text="prefix", text_length=5, device=torch.device("cpu")) is made
    x = torch.randn(1, 159, 2, 4, requires_grad=True)
    made.restore(made.apply(x)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        arrange((1, 0, 4))
    with pytest.raises(ValueError, match="'none' with text_length 0"):
        arrange((1, 4, 4), text_length=3)
    with pytest.raises(ValueError, match="'none' with text_length 0"):
        arrange((1, 4, 4), text="prefix")
    with pytest.raises(ValueError, match="tile of block_size = 64 tokens"):
        arrange((1, 4, 4), tile=(1, 4, 4))
    with pytest.raises(ValueError, match="takes 16 tokens"):
        arrange((1, 4, 4)).apply(torch.zeros(1, 17, 1, 8))
