"""The rule of the temporal delta cache, from statistics of changes alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel.methods.drift import Drift, early_weight


def found(rate: float) -> list[float]:
    """Statistics of a change that a reuse would have missed by this much of it."""
    return [1.0, 1.0, rate * rate, 1.0, 0.0, rate * rate]


def test_the_rule_of_the_paper_by_hand() -> None:
    """rate 0.1, threshold 0.25: two steps fit, a third would make 0.3; one of 0.13 fits once."""
    drift = Drift(order=0)
    assert not drift.may_skip(0.25, 2), "nothing is known yet"
    drift.computed(found(0.1), 1)
    for _ in range(2):
        assert drift.may_skip(0.25, 5)
        drift.skip()
    assert not drift.may_skip(0.25, 5)
    drift.computed(found(0.13), 1)
    assert drift.may_skip(0.25, 5)
    drift.skip()
    assert not drift.may_skip(0.25, 5)


def test_a_line_is_trusted_less_the_longer_it_is_followed() -> None:
    """0.1 + 0.4 + 0.9 on three steps in a row."""
    drift = Drift(order=1)
    drift.computed(found(0.1), 1)
    for threshold, allowed in ((0.09, False), (0.11, True)):
        assert drift.may_skip(threshold, 9) is allowed
    drift.skip()
    assert not drift.may_skip(0.49, 9) and drift.may_skip(0.51, 9)
    drift.skip()
    assert not drift.may_skip(1.39, 9) and drift.may_skip(1.41, 9)


def test_early_drift_counts_more() -> None:
    assert early_weight(0.1, 0.4) == pytest.approx(16) and early_weight(0.2, 0.4) == pytest.approx(4)
    assert early_weight(0.4, 0.4) == early_weight(0.9, 0.4) == early_weight(0.1, 0.0) == 1
    assert early_weight(0.0, 0.4) == math.inf
    drift = Drift(order=0)
    drift.computed(found(0.1), 1)
    assert drift.may_skip(0.25, 5, 2.0) and not drift.may_skip(0.25, 5, 3.0)
    drift.skip(2.0)
    assert drift.accumulated == pytest.approx(0.2) and not drift.may_skip(0.25, 5)


@given(
    rates=st.lists(st.one_of(st.none(), st.floats(0, 2), st.just(math.nan), st.just(math.inf)), min_size=40),
    threshold=st.floats(0, 1),
    max_skips=st.integers(0, 4),
    order=st.sampled_from([0, 1]),
)
def test_never_over_the_threshold_and_never_too_often(
    rates: list[float | None], threshold: float, max_skips: int, order: int
) -> None:
    drift, in_a_row = Drift(order), 0
    for rate in rates:
        if drift.may_skip(threshold, max_skips):
            assert drift.rate is not None and math.isfinite(drift.rate)
            drift.skip()
            in_a_row += 1
            assert in_a_row <= max_skips and drift.accumulated < threshold
        else:
            drift.computed(found(rate or 0.0), None if rate is None else 1)
            in_a_row = 0


@pytest.mark.parametrize(
    ("statistics", "gap", "expected"),
    [
        ([4.0, 1.0, 1.0, 1.0, 0.0, 1.0], 1, 0.5),
        ([4.0, 1.0, 1.0, 1.0, 0.0, 1.0], 2, 0.25),
        ([4.0, 1.0, 1.0, 1.0, 0.0, 1.0], None, None),
        ([0.0, 1.0, 0.0, 0.0, 0.0, 0.0], 1, 0.0),
        ([0.0, 1.0, 1.0, 0.0, 0.0, 1.0], 1, math.inf),
        ([4.0, 1.0, 1.0, 1.0, 3.0, 1.0], 1, math.inf),
        ([4.0, 1.0, math.nan, 1.0, 0.0, 1.0], 1, math.inf),
        ([4.0, 1.0, 1.0, 1.0, 0.0, math.nan], 1, math.inf),
        ([math.inf, 1.0, 1.0, 1.0, 0.0, 1.0], 1, math.inf),
    ],
)
def test_the_rate_errs_on_the_safe_side(statistics: list[float], gap: int | None, expected: float | None) -> None:
    for order in (0, 1):
        drift = Drift(order)
        drift.computed(statistics, gap)
        assert drift.rate == expected and drift.reach == 1.0


def test_a_line_is_followed_as_far_as_it_held() -> None:
    """From sums of squares alone: the share of least squares, and what the share before has missed, against vectors."""
    generator = torch.Generator().manual_seed(1)
    change, slope, *moves = torch.randn(5, 50, generator=generator, dtype=torch.float64)

    def square(x: torch.Tensor) -> float:
        return x.square().sum().item()

    drift = Drift(order=1)
    drift.computed([square(change), 1.0, square(slope), 1.0, 0.0, square(slope)], 1)
    reach = 1.0
    for gap, move in zip((1, 3, 2), moves, strict=True):
        move += 0.8 * gap * slope
        way = gap * slope
        drift.computed([square(change), 1.0, square(move - way), 1.0, 0.0, square(move)], gap)
        assert drift.rate == pytest.approx(math.sqrt(square(move - reach * way) / square(change)) / gap)
        reach = (move @ way / (way @ way)).item()
        assert 0.0 < reach < 2.0 and drift.reach == pytest.approx(reach)
        slope = move / gap


@pytest.mark.parametrize(("share", "reach"), [(-0.5, 0.0), (0.0, 0.0), (0.3, 0.3), (5.0, 2.0)])
def test_a_line_is_followed_neither_backwards_nor_far(share: float, reach: float) -> None:
    drift = Drift(order=1)
    drift.computed([9.0, 1.0, 4.0, 1.0, 0.0, 4.0], 1)
    drift.computed([9.0, 1.0, 4.0 * (share - 1.0) ** 2, 1.0, 0.0, 4.0 * share**2], 1)
    assert drift.reach == pytest.approx(reach)
    drift.computed([9.0, 1.0, math.nan, 1.0, 0.0, 1.0], 1)
    assert drift.reach == 1.0


def test_a_slope_of_another_branch_tells_nothing_of_the_next_change() -> None:
    drift = Drift(order=1)
    drift.computed([9.0, 1.0, 4.0, 1.0, 0.0, 4.0], 1)
    drift.forget_slope()
    drift.computed([9.0, 1.0, 1.0, 1.0, 0.0, 16.0], 1)
    assert drift.rate == pytest.approx(1 / 3) and drift.reach == 1.0
    # From here on the slope is that of the branch which decides now.
    drift.computed([9.0, 1.0, 4.0, 1.0, 0.0, 4.0], 1)
    assert drift.reach == pytest.approx((4.0 + 16.0 - 4.0) / 2 / 16.0)
