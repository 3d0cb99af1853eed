"""How far a reused change is expected to be off, and whether a unit of blocks may be skipped once more.

Source: the temporal delta cache of 6Bit-Diffusion (arXiv 2603.18742, section 4.2). There the drift of a step is
|Delta - Delta'| / |Delta'| of the last two changes. Here it is |Delta - what a reuse would have added| / |Delta|, as
found at the last computed step, for each step since the one before; without a slope both are the same but for the norm
(root mean square in place of the mean magnitude) and the change that it is relative to.

With a slope, a change is continued along a line (TaylorSeer, arXiv 2503.06923, at order 1), but only as far as the line
held the last time: every computed step tells which share of the slope would have come nearest to the change found, by
least squares, and that share is followed until the next. In the built-in model it is well below one while the picture
takes shape, and above one at the end, where the noise falls by more from step to step. A line leaves the curve
as the square of the way that it is followed, so that the second step skipped in a row counts four times, the third nine
times.

Neither says what an error does to the result. One made early is carried through all steps to come, while the picture
takes shape: in the built-in model one step left out early moves the result far more than one left out later
(`python -m bench.one_step`). `early_weight` counts for that; it is ours, and its form, 1/p² at a fraction p of the run,
is chosen, not derived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# A slope is never followed backwards, nor further than this many times.
_FURTHEST = 2.0
# What is shorter than this share of a move says nothing of it: float32 sums of squares are not exact enough.
_NEGLIGIBLE = 0.01


@dataclass
class Drift:
    """The drift of one unit.

    Attributes:
        order: 1 where the change is continued along a line, 0 where it is reused as it is.
        rate: expected drift of the first skipped step; None before it is known.
        reach: share of the slope that a reuse follows.
        accumulated: drift of the steps that were skipped in a row.
        skips: how many they are.
    """

    order: int
    rate: float | None = None
    reach: float = 1.0
    accumulated: float = 0.0
    skips: int = 0
    # Of the slope that is held, the square of its norm; None without one.
    _slope: float | None = None

    def may_skip(self, threshold: float, max_skips: int, weight: float = 1.0) -> bool:
        """Whether the unit may be skipped now, where drift has this weight. One that is no number never allows it."""
        if self.rate is None or self.skips >= max_skips:
            return False
        return self.accumulated + weight * self._next() < threshold

    def skip(self, weight: float = 1.0) -> None:
        """The unit is skipped."""
        self.accumulated += weight * self._next()
        self.skips += 1

    def computed(self, statistics: list[float], gap: int | None) -> None:
        """The unit was computed.

        Args:
            statistics: those of `accel.kernels.delta.update_delta`.
            gap: steps since it was captured before; None when there was nothing to compare with.
        """
        self.accumulated, self.skips = 0.0, 0
        if gap is None:
            self.rate, self.reach, self._slope = None, 1.0, None
            return
        squared, _, missed, _, non_finite, moved = statistics
        if non_finite or not all(map(math.isfinite, (squared, missed, moved))):
            self.rate, self.reach, self._slope = math.inf, 1.0, None
            return
        if self._slope is not None:
            missed = self._fit(missed, moved, gap * gap * self._slope)
        # What a line misses grows as the square of the gap. Divided by the gap alone it is more, where the gap is above
        # one, than the first skipped step is expected to miss, which errs on the safe side.
        if missed == 0.0:
            self.rate = 0.0
        else:
            self.rate = math.sqrt(missed / squared) / gap if squared else math.inf
        self._slope = moved / (gap * gap) if self.order else None

    def forget_slope(self) -> None:
        """The changes to come are of something else."""
        self._slope = None

    def _fit(self, missed: float, moved: float, followed: float) -> float:
        """Sets `reach` to what would have been best, and returns what the one before has missed.

        With m for how the change has moved since, and s for the way along the whole slope: |m - s|² and |m|² were
        found, and |s|² is known, which gives m·s.
        """
        along = (moved + followed - missed) / 2
        missed = max(0.0, moved - 2 * self.reach * along + self.reach * self.reach * followed)
        told = followed > moved * _NEGLIGIBLE**2
        self.reach = min(max(along / followed, 0.0), _FURTHEST) if told else 1.0
        return missed

    def _next(self) -> float:
        return (self.rate or 0.0) * (self.skips + 1) ** (2 * self.order)


def early_weight(progress: float, early: float) -> float:
    """How many times drift counts at this fraction of a run, of which the fraction `early` counts as early."""
    return max(1.0, (early / progress) ** 2) if progress else math.inf
