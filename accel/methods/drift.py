"""How far a reused change is expected to be off, and whether a unit of blocks may be skipped once more.

Source: the temporal delta cache of 6Bit-Diffusion (arXiv 2603.18742, section 4.2). There the drift of a step is
|Delta - Delta'| / |Delta'| of the last two changes. Here it is |Delta - what a reuse would have added| / |Delta|, as
found at the last computed step, for each step since the one before; without a slope both are the same but for the norm
(root mean square in place of the mean magnitude) and the change that it is relative to. A line leaves the curve as the
square of the way that it is followed, so that with a slope the second step skipped in a row counts four times, the
third nine times.

Neither says what an error does to the result. One made early is carried through all steps to come, while the picture
takes shape: in the built-in model one step left out early moves the result far more than one left out later
(`python -m bench.one_step`). `early_weight` counts for that; it is ours, and its form, 1/p² at a fraction p of the run,
is chosen, not derived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Drift:
    """The drift of one unit.

    Attributes:
        order: 1 where the change is continued along a line, 0 where it is reused as it is.
        rate: expected drift of the first skipped step; None before it is known.
        accumulated: drift of the steps that were skipped in a row.
        skips: how many they are.
    """

    order: int
    rate: float | None = None
    accumulated: float = 0.0
    skips: int = 0

    def may_skip(self, threshold: float, max_skips: int, weight: float = 1.0) -> bool:
        """Whether the unit may be skipped now, where drift has this weight. One that is no number never allows it."""
        if self.rate is None or self.skips >= max_skips:
            return False
        return self.accumulated + weight * self._next() < threshold

    def skip(self, weight: float = 1.0) -> None:
        """The unit is skipped."""
        self.accumulated += weight * self._next()
        self.skips += 1

    def computed(self, rate: float | None) -> None:
        """The unit was computed, and the rate found is this; None leaves it unknown."""
        self.rate, self.accumulated, self.skips = rate, 0.0, 0

    def _next(self) -> float:
        return (self.rate or 0.0) * (self.skips + 1) ** (2 * self.order)


def early_weight(progress: float, early: float) -> float:
    """How many times drift counts at this fraction of a run, of which the fraction `early` counts as early."""
    return max(1.0, (early / progress) ** 2) if progress else math.inf


def rate(statistics: list[float], gap: int | None) -> float | None:
    """The drift per step from the statistics of a capture: see `accel.kernels.delta.update_delta`.

    None when there was nothing to compare with; infinite when anything was not finite, and 0 for a change of zero that
    was predicted.
    """
    if gap is None:
        return None
    squared, _, missed, _, non_finite = statistics
    if non_finite or not math.isfinite(missed) or not math.isfinite(squared):
        return math.inf
    if missed == 0.0:
        return 0.0
    return math.sqrt(missed / squared) / gap if squared else math.inf
