"""What image families have of their own: guidance without some layers, images to begin with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline

import accel
from tests.conformance.cases import METHODS
from tests.conformance.snapshot import snapshot
from tests.tiny_pipelines import TINY


def last(session: Any) -> dict[str, Any]:
    return session.summary().to_dict()["runs"][-1]


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", ["delta", "adaspa", "int8"])
@pytest.mark.parametrize("skipped", [[1], [0, 3]])
def test_guidance_without_some_layers_is_a_branch_of_its_own(name: str, skipped: list[int]) -> None:
    case, method = TINY["sd35"], METHODS[name]
    call = {"skip_guidance_layers": skipped, "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.9}
    pipe = case.build()
    plain = case.run(pipe, **call)
    assert not torch.equal(plain, case.run(pipe))
    before = snapshot(pipe)
    with accel.enable(pipe, **method.active) as session:
        first, second = case.run(pipe, **call), case.run(pipe, **call)
    run = last(session)
    assert (run["state"], run["steps"]) == ("finished", 8)
    assert run["branches"] == ["cond_uncond", "cond_without_layers"]
    assert method.acted(run["methods"][name])
    assert torch.equal(first, second)
    assert (first - plain).norm() < 0.3 * plain.norm()
    assert snapshot(pipe) == before
    if method.identity is not None:
        with accel.enable(pipe, **method.identity):
            assert torch.equal(case.run(pipe, **call), plain)


def test_tokens_keep_their_order_where_layers_are_skipped() -> None:
    """The last of them would put the tokens back."""
    case, pipe = TINY["sd35"], TINY["sd35"].build()
    call = {"skip_guidance_layers": [3], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.9}
    plain = case.run(pipe, **call)
    with accel.enable(pipe, attention="adaspa", density=0.8, tiling="forward") as session:
        tiled = case.run(pipe, **call)
    fallbacks = {found["reason"]: found["times"] for found in last(session)["fallbacks"]}
    assert fallbacks["layers are skipped, the last of them perhaps: tokens are tiled per call"] == 6
    assert (tiled - plain).norm() < 0.2 * plain.norm()


def test_stable_diffusion_3_image_to_image() -> None:
    case = TINY["sd35"]
    pipe = StableDiffusion3Img2ImgPipeline(**case.build().components)
    pipe.set_progress_bar_config(disable=True)
    call = {"image": picture(48, 48), "strength": 0.75}
    plain = case.run(pipe, **call)
    with accel.enable(pipe, **METHODS["delta"].active) as session:
        accelerated = case.run(pipe, **call)
        assert torch.equal(case.run(pipe, **call), accelerated)
    run = last(session)
    assert (run["state"], run["steps"], run["planned_steps"]) == ("finished", 6, 6)
    assert METHODS["delta"].acted(run["methods"]["delta"])
    assert torch.equal(case.run(pipe, **call), plain)
