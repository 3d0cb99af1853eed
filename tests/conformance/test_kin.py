"""Pipelines whose transformer another pipeline of the grid has: three methods at once act on them and come off."""

from __future__ import annotations

from contextlib import nullcontext
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
    # Their tokens are no grid together with the image's: sparse attention runs dense then and says so.
    tokens = case.tokens + case.references + case.text_tokens
    said = f"pisa was on and did nothing: the {tokens} tokens are not one grid"
    with (
        accel.enable(pipe, **TOGETHER) as session,
        pytest.warns(accel.AccelWarning, match=said) if case.references else nullcontext(),
    ):
        accelerated = case.run(pipe)
        assert torch.equal(case.run(pipe), accelerated)
    runs = session.summary().to_dict()["runs"]
    branches = len(inspect_pipeline(pipe).guidance.order) if sum(case.forwards.values()) > case.steps else 1
    for run in runs:
        assert (run["state"], run["steps"], run["planned_steps"]) == ("finished", case.steps, case.steps)
        if case.references:
            assert run["grid"] is None and run["methods"]["pisa"]["sparse"] == 0
        else:
            time, height, width = run["grid"]
            assert time * height * width == case.tokens
        for method in ("delta", "int8") if case.references else ("delta", "pisa", "int8"):
            assert METHODS[method].acted(run["methods"][method]), method
        blocks = sum(len(getattr(pipe.transformer, stack)) for stack in case.stacks)
        assert run["methods"]["delta"]["block_calls"] == blocks * branches * case.steps
    assert 0 < (accelerated - plain).norm() < 0.3 * plain.norm()
    with accel.enable(pipe, attention="pisa", density=1.0):
        assert torch.equal(case.run(pipe), plain), "the stand-ins give the bits of diffusers"
    assert snapshot(pipe) == before
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize(
    "name",
    [
        *("chroma", "hunyuan_video", "hunyuan_video15", "ltx", "ltx2", "lumina2", "mochi", "motif_video"),
        *("skyreels_v2", "z_image"),
    ],
)
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


def test_calls_that_guidance_makes_beside_the_usual_one_are_branches_of_their_own() -> None:
    """LTX-2's with some attentions left out, which stay left out there alone, and with video and sound apart."""
    case = TINY["ltx2"]
    pipe = case.build()
    guided = {"stg_scale": 1.0, "spatio_temporal_guidance_blocks": [2], "modality_scale": 3.0}
    plain = case.run(pipe, **guided)
    with accel.enable(pipe, attention=accel.PISAConfig(density=1.0), cache=accel.DeltaCacheConfig(interval=1)):
        assert torch.equal(case.run(pipe, **guided), plain)
    with accel.enable(pipe, attention=TOGETHER["attention"], cache="delta") as session:
        accelerated = case.run(pipe, **guided)
    assert 0 < (accelerated - plain).norm() < 0.3 * plain.norm()
    record = session._recorder.runs[-1]
    assert record.branches == ["cond_uncond", "uncond_stg", "uncond_modality"]
    attended = dict.fromkeys(record.branches, 0)
    for (method, _, _, branch, _), blocks in record.events.items():
        attended[branch] |= blocks if method == "pisa" else 0
    assert attended == {"cond_uncond": 0b1111, "uncond_stg": 0b1011, "uncond_modality": 0b1111}
    assert {branch for (_, what, _, branch, _) in record.events if what == "reused"} == set(record.branches)


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
