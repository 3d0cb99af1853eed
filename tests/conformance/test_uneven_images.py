"""Image families where tokens do not come out even: texts of several lengths in a batch, images that are no squares."""

from __future__ import annotations

from typing import Any

import torch

import accel
from accel.pipelines.attention import AttentionCall
from tests.conformance.cases import METHODS
from tests.tiny_pipelines import TINY


def last(session: Any) -> dict[str, Any]:
    return session.summary().to_dict()["runs"][-1]


def test_texts_of_several_lengths_behind_the_image_are_handled_exactly(masks_read: list[AttentionCall]) -> None:
    """Each picture of a batch is what it is alone."""
    case, pipe = TINY["z_image"], TINY["z_image"].build()
    prompts = ["a red fox", "two green hills and a lake between the trees"]
    latents = torch.randn((2, 4, 44, 52), generator=torch.Generator().manual_seed(3))
    call = {"max_sequence_length": 64, "num_inference_steps": 3}
    with accel.enable(pipe, attention="adaspa", density=0.5, search_steps=(0.0,)) as session:
        # The pipeline writes its template into the list that it is given.
        both = case.run(pipe, prompt=list(prompts), negative_prompt=2 * ["a bad fox"], latents=latents, **call)
        run = last(session)
        assert len(masks_read) == 3, "once for all blocks of a call"
        alone = [
            case.run(pipe, prompt=p, negative_prompt="a bad fox", latents=x[None], **call)
            for p, x in zip(prompts, latents, strict=True)
        ]
    assert METHODS["adaspa"].acted(run["methods"]["adaspa"]) and not run["fallbacks"]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-3, atol=1e-3)


def test_texts_of_several_lengths_before_the_image_leave_lumina_dense(masks_read: list[AttentionCall]) -> None:
    """Each image of the batch stands at another place, behind its own text."""
    case, pipe = TINY["lumina2"], TINY["lumina2"].build()
    call = {"prompt": ["a red fox in the snow by a lake", "a fox"], "negative_prompt": 2 * ["a"]}
    with accel.enable(pipe, attention="adaspa", density=0.5, search_steps=(0.0,)) as session:
        case.run(pipe, **call, num_inference_steps=3)
    run = last(session)
    reasons = {found["reason"]: found["times"] for found in run["fallbacks"]}
    assert reasons == {"the mask hides more than the padding of the text": 3 * 4}
    assert len(masks_read) == 3, "once for all blocks of a call"
    assert run["methods"]["adaspa"]["sparse"] == 2 * 4, "the calls without a condition, whose texts are equally long"


def test_a_picture_that_is_no_square_is_sparse_in_the_single_blocks_of_hidream() -> None:
    case, pipe = TINY["hidream"], TINY["hidream"].build()
    call = {"height": 32, "num_inference_steps": 3}
    plain = case.run(pipe, **call)
    with accel.enable(pipe, attention="adaspa", density=0.5, search_steps=(0.0,)) as session:
        found = case.run(pipe, **call)
    run = last(session)
    assert (run["methods"]["adaspa"]["searched"], run["methods"]["adaspa"]["sparse"]) == (2, 2 * 2)
    (reason,) = run["fallbacks"]
    assert reason["times"] == 3 * 2 and "are not one grid" in reason["reason"]
    assert 0 < (found - plain).norm() < 0.2 * plain.norm()
    with accel.enable(pipe, attention="adaspa", density=1.0):
        assert torch.equal(case.run(pipe, **call), plain)
