"""What a benchmark may say of a setting: how much faster it is, whether noise could be that, or why it is silent."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accel.measure.confidence import LEAST, interval
from accel.measure.timing import Timing, ratio

# Two equal settings differ by about this much on machines that do other things too; chosen by us.
LEAST_SPREAD = 0.01
# Frames that are further from the plain ones than this show something else; chosen by us. Clips of the built-in model
# with different prompts lie 2 to 13 dB apart.
LEAST_PSNR = 12.0
# Kinds of flags of `judge` with which a clip is no result, and what they come to in a few words; how unlike it may be
# is asked here.
_RED = {"broken": "broken", "frozen": "stands still", "flicker": "flickers"}


@dataclass(frozen=True)
class SpeedUp:
    """How many times as fast as the baseline, by medians; `spread` is what noise may have added or taken.

    A pair is a run of each, of the same prompt and seed, in the same round. Of fewer than three the spread is not
    known, None.
    """

    ratio: float
    spread: float | None
    pairs: int

    @property
    def measurable(self) -> bool | None:
        """Whether the difference lies outside of the spread; None where that is not known."""
        return None if self.spread is None else abs(self.ratio - 1) > self.spread

    def __str__(self) -> str:
        if self.spread is None:
            return f"{self.ratio:.2f}× ({self.pairs} {'pair' if self.pairs == 1 else 'pairs'}: spread unknown)"
        if not self.measurable:
            return f"no measurable difference (1.00 ± {self.spread:.2f})"
        return f"{self.ratio:.2f}× ± {self.spread:.2f}"


def speed_up(base: Sequence[float], other: Sequence[float]) -> SpeedUp:
    """From the seconds of the runs of the baseline and of another setting, in the order of their pairs.

    The spread is how far the interval in which the middle of the pairs' ratios lies with 95 % confidence
    (:func:`accel.measure.confidence.interval`) reaches from the speed-up towards 1 or over it, and no less than
    `LEAST_SPREAD`: what differs from 1 by more than that does so by noise alone in one comparison of twenty. A single
    pair that is far off on the other side does not widen it.

    Raises:
        ValueError: no pair, or unequal numbers of runs.
    """
    if not base or len(base) != len(other):
        raise ValueError(f"{len(base)} runs of the baseline and {len(other)} of the other make no pairs")
    ratios = [a / b for a, b in zip(base, other, strict=True)]
    found, spread = ratio(Timing(tuple(base)), Timing(tuple(other))), None
    if len(ratios) >= LEAST:
        (low, high), middle = interval(ratios), statistics.median(ratios)
        # The ratio of the medians may lie at the interval's end, or outside of it.
        reach = max(found, middle) - low if found >= 1 else high - min(found, middle)
        spread = max(reach, LEAST_SPREAD)
    return SpeedUp(found, spread, len(ratios))


def reds(clips: Sequence[dict[str, Any]], *, least_psnr: float = LEAST_PSNR) -> list[str]:
    """Why the results of a setting are not what its speed may be told of; empty where they are.

    Args:
        clips: of each run its figures "flags" (what is wrong with the frames beside those of the baseline, by kind),
            "psnr_db" (None for the baseline itself and for the same bits) and "repeats" (whether another run of the
            same gave the same bits; None where there was none).
        least_psnr: in dB, what a picture must have to be the same picture.
    """
    found = [
        f"{kind} in {len(flagged)} of {len(clips)} clips: {flagged[0]}"
        for kind in _RED
        if (flagged := [clip["flags"][kind] for clip in clips if kind in clip["flags"]])
    ]
    far = [clip["psnr_db"] for clip in clips if _far(clip, least_psnr)]
    if far:
        found.append(
            f"{len(far)} of {len(clips)} clips show something else than the plain run "
            f"(PSNR down to {min(far):.1f} dB, under {least_psnr:g})"
        )
    if any(clip["repeats"] is False for clip in clips):
        found.append("the same run gave other bits the second time")
    return found


def fault(clip: dict[str, Any], *, least_psnr: float = LEAST_PSNR) -> str | None:
    """What `reds` says of one clip alone, in a few words to stand below its picture; None where it says nothing."""
    flagged = next((words for kind, words in _RED.items() if kind in clip["flags"]), None)
    if flagged is not None:
        return flagged
    if _far(clip, least_psnr):
        return "not the same picture"
    return "other bits the second time" if clip["repeats"] is False else None


def _far(clip: dict[str, Any], least_psnr: float) -> bool:
    return clip["psnr_db"] is not None and clip["psnr_db"] < least_psnr
