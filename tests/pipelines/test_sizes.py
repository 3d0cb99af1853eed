"""Sizes that a pipeline makes without rounding, from its autoencoder, its patches and what its call wants."""

from __future__ import annotations

import pytest

from accel.pipelines.sizes import SizeRule, size_rule
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
    assert size_rule(stable_diffusion()) is None
