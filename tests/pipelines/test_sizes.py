"""Sizes that a pipeline makes without rounding, from its autoencoder, its patches and what its call wants."""

from __future__ import annotations

import pytest

from accel.pipelines.sizes import SizeRule, frame_rate, size_rule
from tests.tiny.unknown import stable_diffusion
from tests.tiny_pipelines import TINY


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("wan", SizeRule(pixels=4, frames=2)),
        ("flux", SizeRule(pixels=2, frames=1)),
        ("ltx", SizeRule(pixels=32, frames=4)),
        ("mochi", SizeRule(pixels=4, frames=2)),
        ("sd3_heun", SizeRule(pixels=2, frames=1)),
    ],
)
def test_rules(name: str, rule: SizeRule) -> None:
    assert size_rule(TINY[name].build()) == rule


def test_an_unknown_family_has_no_rule() -> None:
    pipe = stable_diffusion()
    assert size_rule(pipe) is None and frame_rate(pipe) is None


@pytest.mark.parametrize(
    ("name", "rate"),
    [("wan", 16), ("wan22_ti2v", 24), ("cogvideox", 8), ("cogvideox15_i2v", 16), ("mochi", 30), ("flux", None)],
)
def test_rates_of_the_published_weights(name: str, rate: float | None) -> None:
    assert frame_rate(TINY[name].build()) == rate
