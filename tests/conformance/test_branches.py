"""Guidance branches of one pipeline, called by hand: in which order, or whether at all, changes the bits of none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

import accel
from tests.conformance.cases import METHODS
from tests.tiny_pipelines import TINY

BOTH = ("cond", "uncond")
# Rules that ask no branch: the share of a line that is followed is measured on the one that comes first.
SETTINGS: dict[str, dict[str, Any]] = {
    "delta": METHODS["delta"].active,
    "tdc": {**METHODS["tdc"].active, "order": 0},
    "flashblock": METHODS["flashblock"].active,
}


@cache
def built() -> tuple[Any, dict[str, dict[str, Any]]]:
    """A pipeline, and with which arguments it calls its transformer for each branch."""
    pipe = TINY["wan"].build()
    noted: list[dict[str, Any]] = []
    handle = pipe.transformer.register_forward_pre_hook(lambda *call: noted.append(call[2]), with_kwargs=True)
    TINY["wan"].run(pipe, num_inference_steps=1)
    handle.remove()
    return pipe, dict(zip(BOTH, noted, strict=True))


def called(order: Sequence[str], settings: dict[str, Any]) -> tuple[dict[tuple[int, str], torch.Tensor], Any]:
    """What eight steps give by step and branch, each on inputs of its own, with these branches in this order."""
    pipe, asked = built()
    drift = torch.randn(asked["cond"]["hidden_states"].shape, generator=torch.Generator().manual_seed(1))
    found = {}
    with accel.enable(pipe, **settings) as session, pipe.progress_bar(total=8), torch.no_grad():
        for step in range(8):
            for branch in order:
                hidden = asked[branch]["hidden_states"] + (0.1 if branch == "cond" else -0.2) * step * drift
                with pipe.transformer.cache_context(branch):
                    found[step, branch] = pipe.transformer(**{**asked[branch], "hidden_states": hidden})[0]
    return found, session.summary().to_dict()["runs"][0]


@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_no_branch_sees_the_state_of_another(method: str) -> None:
    """Swapped, and each alone: the same bits."""
    expected, record = called(BOTH, SETTINGS[method])
    plain, _ = called(BOTH, {"cache": "delta", "interval": 1})
    reused = [step for step, count in enumerate(record["methods"][method]["reused_by_step"]) if count]
    assert METHODS[method].acted(record["methods"][method])
    for branch in BOTH:
        assert all(not torch.equal(expected[step, branch], plain[step, branch]) for step in reused), "it shows"
    for order in (BOTH[::-1], BOTH[:1], BOTH[1:]):
        found, record = called(order, SETTINGS[method])
        assert record["branches"] == list(order) and record["steps"] == 8
        assert len(found) == 8 * len(order)
        assert all(torch.equal(output, expected[key]) for key, output in found.items()), order
