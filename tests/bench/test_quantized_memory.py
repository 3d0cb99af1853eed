"""The table of memory: the ratios that the formula gives for published models, and that the committed table is this."""

from __future__ import annotations

import json

import pytest

from bench.quantized_memory import GEOMETRIES, ROOT, markdown, measure

FIGURES = json.loads((ROOT / "bench" / "results" / "quantized_memory.json").read_text())["models"]
# Counted beforehand from the configurations: block linears alone, and with modulation.
RATIOS = {"Wan 2.1-14B": (3.41, 3.41), "CogVideoX-5B": (2.59, 3.52), "CogVideoX-2B": (2.29, 3.49)}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_bytes_of_published_models(name: str) -> None:
    found = measure(GEOMETRIES[name])
    assert json.loads(json.dumps(found)) == FIGURES[name], "run python -m bench.quantized_memory --write"
    ratios = tuple(found[form]["ratio"] for form in ("nvfp4", "nvfp4_with_modulation"))
    assert ratios == pytest.approx(RATIOS[name], abs=0.005)


def test_one_model_by_hand() -> None:
    """Wan 14B: in each of 40 blocks eight linears of 5120x5120 and two of 5120x13824, at 4.5 bits and 8 bytes each."""
    numbers = 40 * (8 * 5120 * 5120 + 2 * 5120 * 13824)
    found = FIGURES["Wan 2.1-14B"]
    assert found["nvfp4"]["linears"] == 400
    assert found["bf16_bytes"] - found["nvfp4"]["bytes"] == 2 * numbers - (numbers * 9 // 16 + 400 * 8)
    assert found["scratch_bytes"]["int8"] == 5120 * 13824 + 4 * 13824


def test_the_page_is_that_of_the_figures() -> None:
    assert (ROOT / "bench" / "results" / "quantized_memory.md").read_text() == markdown(FIGURES)
