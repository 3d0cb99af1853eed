"""Which layers get the finer of two formats at a step, from how much their blocks changed at the step before.

6Bit-Diffusion (arXiv 2603.18742, section 4.1) predicts the error of layer i, in block l, as alpha_i * Gamma + beta_i
with Gamma = |Y - X| / |X| of the block at the step before, and takes INT8 where that is above one threshold. The paper
takes mean magnitudes; here they are root mean squares, which the same pass gives as a cache's statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from accel.methods.layer_choice import Layer


class Rule(Protocol):
    """Decides a step."""

    def high(
        self, layers: list[Layer], changes: Mapping[int, float], errors: Mapping[int, float], steps_left: int
    ) -> set[int]:
        """Indices of the layers that get the finer format. `changes` has Gamma for each block that was computed at the
        step before, for all others it is not known; `errors` has the error of layers that was measured at the first
        step; `steps_left` counts this one."""


@dataclass(frozen=True)
class ThresholdRule:
    """The finer format where the predicted error is above a threshold, and where nothing is known.

    `lines` has (alpha, beta) by the layer's name, (1, 0) for others.
    """

    threshold: float
    lines: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def high(
        self, layers: list[Layer], changes: Mapping[int, float], errors: Mapping[int, float], steps_left: int
    ) -> set[int]:
        return {layer.index for layer in layers if not self._predicted(layer, changes) <= self.threshold}

    def _predicted(self, layer: Layer, changes: Mapping[int, float]) -> float:
        alpha, beta = self.lines.get(layer.name, (1.0, 0.0))
        change = math.nan if layer.block is None else changes.get(layer.block, math.nan)
        return alpha * change + beta


def _by_error(error: float, change: float) -> float:
    return error


@dataclass
class ShareRule:
    """The finer format for a share of the layers, those whose error was largest at the first step, without calibration.

    The share is that of a whole run: what the first step takes, where nothing is known, is spared on all later ones.
    What a cache skips counts for nothing, and as much as was skipped so far is expected to be.
    Layers whose error is not known, and those of blocks whose change is not, always get the finer one. Chosen by us:
    on the built-in model errors differ between layers and hardly from step to step, and the blocks that change most
    are not those with the largest errors. `score` puts something else in the place of the error: a number of that error
    and of the change of the layer's block at the step before.
    """

    share: float
    score: Callable[[float, float], float] = _by_error
    _used: int = 0
    _seen: int = 0
    # With what did not run.
    _asked: int = 0
    _chosen: set[int] = field(default_factory=set)

    def high(
        self, layers: list[Layer], changes: Mapping[int, float], errors: Mapping[int, float], steps_left: int
    ) -> set[int]:
        # As many of the steps to come will run as did so far.
        steps = max(1.0, steps_left * self._seen / self._asked if self._asked else steps_left)
        wanted = self.share * (self._seen + steps * len(layers)) - self._used
        number = min(len(layers), max(0, math.floor(wanted / steps + 0.5)))
        scores = {
            layer.index: self.score(errors[layer.index], changes[layer.block])
            for layer in layers
            if layer.block is not None and _finite(changes.get(layer.block)) and _finite(errors.get(layer.index))
        }
        chosen = {layer.index for layer in layers} - set(scores)
        known = sorted(scores, key=lambda index: (-scores[index], index))
        chosen.update(known[: max(0, number - len(chosen))])
        self._used += len(chosen)
        self._seen += len(layers)
        self._asked += len(layers)
        self._chosen = chosen
        return chosen

    def skipped(self, layers: set[int]) -> None:
        """Takes layers out of the account for which the last step was decided, and which then did not run."""
        self._used -= len(layers & self._chosen)
        self._seen -= len(layers)

    def follow(self, before: ShareRule) -> None:
        """Takes over the account of the rule of the transformer, or chunk, that ran before in the same run.

        How long that one would run it did not know, so that what its first step took may not all be spared yet.
        """
        self._used, self._seen, self._asked = before._used, before._seen, before._asked


def later_share(share: float, steps: int, firsts: int = 1) -> float:
    """The share of all steps but the first ones, of which each transformer has one, that makes a share of the whole
    run, where the first ones get the finer format in all layers."""
    return min(1.0, max(0.0, (share * steps - firsts) / (steps - firsts))) if steps > firsts else share


def _finite(number: float | None) -> bool:
    return number is not None and math.isfinite(number)
