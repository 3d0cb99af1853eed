"""How products of quantized matrices cut their work on each architecture: a table, so that no run depends on a tuner.

Not tuned on a device: no GPU has run these products. What stands here compiles without spills on each architecture,
at the sizes of models.
"""

from dataclasses import dataclass
from typing import Literal

from accel.kernels.forms import by_architecture

Product = Literal["int8", "nvfp4", "nvfp4 native", "nvfp4 weight", "nvfp4 weight in float32"]


@dataclass(frozen=True)
class Tile:
    """The cut of one product.

    Attributes:
        rows, outputs: of the result, that one program makes.
        channels: that one iteration takes.
        warps: warps of one program.
        stages: iterations that are in flight.
        together: how many tiles of rows share their weights in the cache.
    """

    rows: int
    outputs: int
    channels: int
    warps: int = 8
    stages: int = 3
    together: int = 8

    def launch(self) -> dict[str, int]:
        """What a kernel is launched with."""
        return {
            "ROWS": self.rows,
            "OUTPUTS": self.outputs,
            "CHANNELS": self.channels,
            "TOGETHER": self.together,
            "STAGES": self.stages,
            "num_warps": self.warps,
        }


# By product and compute capability (the largest that is not above the device's).
TILES: dict[Product, dict[int, Tile]] = {
    "int8": {80: Tile(128, 128, 64)},
    # Both sides decoded by the kernel, in float16.
    "nvfp4": {80: Tile(128, 128, 64)},
    # Both decoded by the tensor cores: multiples of 128, 128 and 64, which a tile of scales has.
    "nvfp4 native": {100: Tile(128, 128, 256)},
    "nvfp4 weight": {80: Tile(128, 128, 64)},
    # Float32 takes twice the room.
    "nvfp4 weight in float32": {80: Tile(64, 64, 32)},
}


def tile_for(product: Product) -> Tile:
    """The tile for the GPU that Triton compiles for now."""
    return by_architecture(TILES[product])
