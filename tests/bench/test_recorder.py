"""What the recorder's cost is told with: the interval that a median lies in."""

import random

import pytest

from bench.recorder import LEAST_PAIRS, _markdown, median_interval


@pytest.mark.parametrize(("count", "ranks"), [(6, (1, 6)), (9, (2, 8)), (20, (6, 15)), (60, (22, 39))])
def test_the_interval_is_that_of_the_sign_test(count, ranks):
    """Ranks as tables of the sign test have them for 95 %."""
    values = list(range(1, count + 1))
    random.Random(0).shuffle(values)
    assert median_interval(values) == ranks


def test_it_holds_the_median_as_often_as_it_says():
    """Of skewed values too, as seconds are."""
    rng, held = random.Random(1), 0
    for _ in range(2000):
        low, high = median_interval([rng.expovariate(1) for _ in range(20)])
        held += low <= 0.693147 <= high
    assert 0.94 < held / 2000 < 0.98


def test_too_few_tell_no_interval():
    with pytest.raises(ValueError, match="it takes 6"):
        median_interval([1.0] * (LEAST_PAIRS - 1))


def test_the_page_has_the_interval():
    row = {"setting": "enabled", "seconds": 2.0, "share": 0.01, "least": -0.002, "most": 0.021}
    page = _markdown([row], {"command": "python -m bench.recorder", "weights": "0", "machine": {"cores": 2}})
    assert "| enabled | 2.00 | +1.0% (-0.2% to +2.1%) |" in page
