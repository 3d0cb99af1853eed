"""Where a median lies, and how often a setting that does nothing is called faster or slower."""

import random

import pytest

from accel.measure.confidence import LEAST, interval
from accel.measure.verdict import speed_up


@pytest.mark.parametrize(("count", "ranks"), [(6, (1, 6)), (9, (2, 8)), (20, (6, 15)), (60, (22, 39))])
def test_of_six_or_more_the_interval_is_that_of_the_sign_test(count, ranks):
    """Ranks as tables of the sign test have them for 95 %."""
    values = list(range(1, count + 1))
    random.Random(0).shuffle(values)
    assert interval(values) == ranks


def test_of_fewer_it_is_that_of_students_t():
    """3 values of mean 2 and standard deviation 1: 2 ± 4.303 / √3."""
    assert interval([1.0, 3.0, 2.0]) == pytest.approx((2 - 2.4843, 2 + 2.4843), abs=1e-3)


@pytest.mark.parametrize("count", [3, 5, 6, 20])
def test_it_holds_the_median_as_often_as_it_says(count):
    rng, held = random.Random(1), 0
    for _ in range(2000):
        low, high = interval([rng.gauss(1, 0.1) for _ in range(count)])
        held += low <= 1 <= high
    assert 0.93 < held / 2000 < 0.99


def test_it_holds_the_median_of_skewed_values_too():
    """As seconds are."""
    rng, held = random.Random(1), 0
    for _ in range(2000):
        low, high = interval([rng.expovariate(1) for _ in range(20)])
        held += low <= 0.693147 <= high
    assert 0.94 < held / 2000 < 0.98


def test_too_few_tell_no_interval():
    with pytest.raises(ValueError, match="it takes 3"):
        interval([1.0] * (LEAST - 1))


@pytest.mark.parametrize("pairs", [3, 4, 6, 12, 24])
def test_what_does_nothing_is_seldom_called_different(pairs):
    rng, different = random.Random(2), 0
    for _ in range(2000):
        base, other = ([rng.gauss(10, 0.5) for _ in range(pairs)] for _ in range(2))
        different += bool(speed_up(base, other).measurable)
    assert different / 2000 < 0.1


def test_a_pair_that_is_far_off_does_not_hide_a_difference():
    """In one pair of seven the baseline took four times as long; all of them say that the other is faster."""
    found = speed_up([40.0, *[10.0] * 6], [2.5, 3.0, 3.3, 2.7, 2.9, 3.1, 3.0])
    assert found.measurable and found.ratio - found.spread == pytest.approx(10 / 3.3)
    slower = speed_up([3.0, 2.5, 3.3, 2.7, 2.9, 3.1, 3.0], [40.0, *[10.0] * 6])
    assert slower.measurable and slower.ratio + slower.spread == pytest.approx(0.34)


def test_a_ratio_of_medians_at_the_end_of_the_interval_has_the_spread_of_its_pairs():
    """Medians of 10 and 5, where the middle of the ratios of pairs is 2.9."""
    found = speed_up([10, 10, 10, 12, 15, 9, 8], [3.3, 2.5, 5, 5.1, 5.2, 5.3, 2.6])
    low, _ = interval([10 / 3.3, 10 / 2.5, 10 / 5, 12 / 5.1, 15 / 5.2, 9 / 5.3, 8 / 2.6])
    assert found.ratio == 2 and found.spread == pytest.approx(15 / 5.2 - low)


def test_what_is_twice_as_fast_is_measured_as_that():
    rng = random.Random(3)
    found = speed_up([rng.gauss(10, 0.2) for _ in range(12)], [rng.gauss(5, 0.1) for _ in range(12)])
    assert found.measurable and found.pairs == 12
    assert abs(found.ratio - 2) < 0.05 and 0.01 <= found.spread < 0.1
