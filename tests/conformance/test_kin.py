"""Pipelines whose transformer another pipeline of the grid has: three methods at once act on them and come off."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import accel
from accel.pipelines.sites import inspect_pipeline
from tests.conformance.cases import METHODS
from tests.conformance.snapshot import snapshot
from tests.tiny_pipelines import KIN, TINY

TOGETHER: dict[str, Any] = {
    "attention": accel.PISAConfig(density=0.5, dense_layers=1),
    "cache": "delta",
    "quantize": "int8",
}


@pytest.mark.parametrize("name", KIN)
def test_acts_and_comes_off_without_a_trace(name: str) -> None:
    case = KIN[name]
    pipe = case.build()
    plain, before = case.run(pipe), snapshot(pipe)
    with accel.enable(pipe, **TOGETHER) as session:
        accelerated = case.run(pipe)
    runs = session.summary().to_dict()["runs"]
    branches = len(inspect_pipeline(pipe).guidance.order) if sum(case.forwards.values()) > case.steps else 1
    for run in runs:
        assert (run["state"], run["steps"], run["planned_steps"]) == ("finished", case.steps, case.steps)
        time, height, width = run["grid"]
        assert time * height * width == case.tokens
        for method in ("delta", "pisa", "int8"):
            assert METHODS[method].acted(run["methods"][method]), method
        blocks = sum(len(getattr(pipe.transformer, stack)) for stack in case.stacks)
        assert run["methods"]["delta"]["block_calls"] == blocks * branches * case.steps
    assert 0 < (accelerated - plain).norm() < 0.3 * plain.norm()
    with accel.enable(pipe, attention="pisa", density=1.0):
        assert torch.equal(case.run(pipe), plain), "the stand-ins give the bits of diffusers"
    assert snapshot(pipe) == before
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("name", ["hunyuan_video", "hunyuan_video15", "ltx", "mochi", "motif_video", "skyreels_v2"])
def test_a_search_computes_what_diffusers_computes(name: str) -> None:
    """A search is dense, in blocks: tokens, rotation and hidden text go where they belong."""
    case = TINY[name]
    pipe, steps = case.build(), case.fewest_steps
    plain = case.run(pipe, num_inference_steps=steps)
    last = accel.AdaSpaConfig(search_steps=((steps - 1) / steps,))
    with (
        accel.enable(pipe, attention=last) as session,
        pytest.warns(accel.AccelWarning, match="adaspa was on and did nothing"),
    ):
        searched = case.run(pipe, num_inference_steps=steps)
    (run,) = session.summary().to_dict()["runs"]
    assert run["methods"]["adaspa"]["searched"] == run["methods"]["adaspa"]["attention_calls"] // steps > 0
    assert 0 < (searched - plain).norm() < 1e-5 * plain.norm()


def test_blocks_that_know_the_first_frame_by_its_place_keep_the_order() -> None:
    pipe = TINY["hunyuan_video_i2v"].build()
    with pytest.raises(accel.AccelError, match="TokenReplaceTransformerBlock, which treats some tokens by their place"):
        accel.enable(pipe, attention=accel.PISAConfig(tiling="forward"))


def test_a_mask_of_causal_blocks_leaves_attention_dense_and_is_counted() -> None:
    case = TINY["skyreels_v2_df"]
    pipe = case.build()
    causal = {"num_frames": 7, "causal_block_size": 2, "ar_step": 2}
    plain = case.run(pipe, **causal)
    with (
        accel.enable(pipe, attention="pisa", density=0.5) as session,
        pytest.warns(accel.AccelWarning, match="pisa was on and did nothing: the mask is not the padding of a text"),
    ):
        assert torch.equal(case.run(pipe, **causal), plain)
    (run,) = session.summary().to_dict()["runs"]
    assert run["steps"] == run["planned_steps"] > case.steps, "blocks of frames follow each other"
    assert run["methods"]["pisa"]["sparse"] == 0 < run["methods"]["pisa"]["attention_calls"]
