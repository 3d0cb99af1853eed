"""Which layers get the finer of two formats at a step, from how much their blocks changed at the step before.

6Bit-Diffusion (arXiv 2603.18742, section 4.1) predicts the error of layer i, in block l, as alpha_i * Gamma + beta_i
with Gamma = |Y - X| / |X| of the block at the step before, and takes INT8 where that is above one threshold. The paper
takes mean magnitudes; here they are root mean squares, which the same pass gives as a cache's statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from accel.methods.layer_choice import Layer


class Rule(Protocol):
    """Decides a step."""

    def high(self, layers: list[Layer], changes: Mapping[int, float], steps_left: int) -> set[int]:
        """Indices of the layers that get the finer format. `changes` has Gamma for each block that was computed at the
        step before, for all others it is not known; `steps_left` counts this one."""


@dataclass(frozen=True)
class ThresholdRule:
    """The finer format where the predicted error is above a threshold, and where nothing is known.

    `lines` has (alpha, beta) by the layer's name, (1, 0) for others.
    """

    threshold: float
    lines: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def high(self, layers: list[Layer], changes: Mapping[int, float], steps_left: int) -> set[int]:
        return {layer.index for layer in layers if not self._predicted(layer, changes) <= self.threshold}

    def _predicted(self, layer: Layer, changes: Mapping[int, float]) -> float:
        alpha, beta = self.lines.get(layer.name, (1.0, 0.0))
        change = math.nan if layer.block is None else changes.get(layer.block, math.nan)
        return alpha * change + beta


@dataclass
class ShareRule:
    """The finer format for a share of the blocks, those that changed most, without any calibration.

    The share is that of a whole run: what the first step takes, where nothing is known, is spared on all later ones.
    Blocks whose change is not known or not finite always get the finer one. Chosen by us.
    """

    share: float
    _used: float = 0.0
    _seen: int = 0

    def high(self, layers: list[Layer], changes: Mapping[int, float], steps_left: int) -> set[int]:
        blocks = sorted({layer.block for layer in layers if layer.block is not None})
        wanted = self.share * (self._seen + steps_left * len(blocks)) - self._used
        number = min(len(blocks), max(0, math.floor(wanted / steps_left + 0.5)))
        unknown = [block for block in blocks if not math.isfinite(changes.get(block, math.nan))]
        known = sorted((block for block in blocks if block not in unknown), key=lambda block: (-changes[block], block))
        chosen = {*unknown, *known[: max(0, number - len(unknown))]}
        self._used += len(chosen)
        self._seen += len(blocks)
        return {layer.index for layer in layers if layer.block is None or layer.block in chosen}
