"""Where the middle of what a few noisy values are drawn from lies, with 95 % confidence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# Of fewer, nothing can be said of noise.
LEAST = 3
# The fewest whose least and largest have the median between them with 95 % confidence: 1 - 2 / 2⁶ is 97 %.
LEAST_BY_SIGNS = 6
# The 97.5th percentile of Student's t, by the number of values.
_STUDENT = {3: 4.303, 4: 3.182, 5: 2.776}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies: of six values or more by the sign test, which assumes nothing of them but that they are
    drawn independently; of fewer, of which that test says nothing, by Student's t, as if noise were normal.

    By the sign test these are the k-th least and the k-th largest value, with the largest k of which a fair coin,
    thrown once for each value, shows fewer than k heads with a probability of at most 2.5 %.

    Raises:
        ValueError: fewer than `LEAST` values.
    """
    count = len(values)
    if count < LEAST:
        raise ValueError(f"{count} values tell no interval; it takes {LEAST}")
    if count < LEAST_BY_SIGNS:
        middle = statistics.mean(values)
        half = _STUDENT[count] * statistics.stdev(values) / math.sqrt(count)
        return middle - half, middle + half
    rank, below = 0, 1
    while below <= 0.025 * 2**count:
        rank += 1
        below += math.comb(count, rank)
    ordered = sorted(values)
    return ordered[rank - 1], ordered[count - rank]
