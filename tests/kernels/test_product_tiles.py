"""The table of tiles of quantized products: which entry a GPU takes, and that every entry can be one."""

import sys
from types import SimpleNamespace

import pytest

from accel.kernels.int8.tiles import TILES, Tile, tile_for

OLD, NEW = Tile(64, 64, 32), Tile(128, 256, 64, stages=4)


@pytest.mark.parametrize(
    ("arch", "taken"), [(75, OLD), (80, OLD), (89, OLD), (90, NEW), (120, NEW), ("gfx942", OLD), (None, OLD)]
)
def test_a_gpu_takes_the_entry_of_the_largest_capability_not_above_its_own(monkeypatch, arch, taken):
    pytest.importorskip("triton.runtime.driver")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    target = SimpleNamespace(get_current_target=lambda: SimpleNamespace(arch=arch))
    monkeypatch.setattr(sys.modules["triton.runtime.driver"], "driver", SimpleNamespace(active=target))
    monkeypatch.setitem(TILES, "int8", {90: NEW, 80: OLD})
    assert tile_for("int8") == taken


@pytest.mark.parametrize("product", TILES)
def test_every_entry_is_a_tile_of_its_kernel(product):
    """Powers of two, of 16 and more; where the tensor cores read scales, as many as a tile of scales holds."""
    for tile in TILES[product].values():
        sizes = (tile.rows, tile.outputs, tile.channels)
        assert all(size >= 16 and size & (size - 1) == 0 for size in sizes)
        if product == "nvfp4 native":
            assert [size % least for size, least in zip(sizes, (128, 128, 64), strict=True)] == [0, 0, 0]
