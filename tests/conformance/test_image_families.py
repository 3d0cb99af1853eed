"""What image families have of their own: guidance without some layers, padded texts, pictures to go by."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from PIL import Image

import accel
from accel.errors import AccelWarning
from accel.pipelines.attention import AttentionCall
from tests.conformance.cases import METHODS
from tests.conformance.snapshot import snapshot
from tests.tiny_pipelines import TINY


def last(session: Any) -> dict[str, Any]:
    return session.summary().to_dict()["runs"][-1]


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


@pytest.mark.parametrize("tiling", ["call", "forward"])
def test_padding_of_texts_before_the_image_is_handled_exactly(tiling: str, masks_read: list[AttentionCall]) -> None:
    """Each picture of a batch is what it is alone, and so, where nothing is padded, are the pictures of one batch."""
    case, pipe = TINY["qwenimage"], TINY["qwenimage"].build()
    prompts = ["a red fox", "two green hills and a lake"]
    latents = torch.randn((2, 572, 16), generator=torch.Generator().manual_seed(3))
    settings = {"attention": "adaspa", "density": 0.5, "tiling": tiling}
    negative = {"negative_prompt": "a bad fox", "num_inference_steps": 3}
    with accel.enable(pipe, **settings, search_steps=(0.0,)) as session:
        both = case.run(pipe, prompt=prompts, latents=latents, **{**negative, "negative_prompt": ["a bad fox"] * 2})
        run = last(session)
        assert len(masks_read) == 3, "once for all blocks of a call whose texts have several lengths"
        alone = [case.run(pipe, prompt=p, latents=x[None], **negative) for p, x in zip(prompts, latents, strict=True)]
    assert METHODS["adaspa"].acted(run["methods"]["adaspa"]) and not run["fallbacks"]
    assert tiling == "call" or run["methods"]["adaspa"]["tiled_forwards"] > 0
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-3, atol=1e-3)


def test_pictures_to_go_by_leave_sparse_attention_dense() -> None:
    """Their tokens stand behind those of the image, so that all of them are no grid; a cache does not mind."""
    case, pipe = TINY["flux2"], TINY["flux2"].build()
    pixels = numpy.arange(64 * 64 * 3, dtype=numpy.uint8).reshape(64, 64, 3)
    call = {"image": Image.fromarray(pixels), "num_inference_steps": 3}
    plain = case.run(pipe, **call)
    assert not torch.equal(plain, case.run(pipe, num_inference_steps=3))
    with (
        accel.enable(pipe, attention="adaspa", density=0.5) as session,
        pytest.warns(AccelWarning, match="adaspa was on and did nothing: the 1620 tokens are not one grid"),
    ):
        found = case.run(pipe, **call)
    assert torch.equal(found, plain)
    assert last(session)["methods"]["adaspa"]["attention_calls"] == 3 * 5
    with accel.enable(pipe, cache="delta", dense_steps=0.0, boundary=1.0) as session:
        found = case.run(pipe, **call)
    assert METHODS["delta"].acted(last(session)["methods"]["delta"])
    assert 0 < (found - plain).norm() < 0.3 * plain.norm()


def test_tiling_once_is_refused_where_text_and_image_are_joined_half_way() -> None:
    with pytest.raises(accel.AccelError, match=r"adaspa cannot tile once per forward: .*FLUX\.2.*use tiling='call'"):
        accel.enable(TINY["flux2"].build(), attention="adaspa", tiling="forward")


@pytest.mark.parametrize("settings", [{"attention": "pisa"}, {"attention": "adaspa"}, {"cache": "flashblock"}])
def test_linear_attention_refuses_what_works_on_softmax_attention(settings: dict[str, str]) -> None:
    pipe = TINY["sana"].build()
    before = snapshot(pipe)
    with pytest.raises(accel.AccelError) as refused:
        accel.enable(pipe, **settings)
    (name,) = settings.values()
    said = str(refused.value)
    assert said.startswith(f"{name} works on ") and said.endswith("cache='delta' or cache='tdc' does without")
    assert "that of Sana is linear attention; " in said and "\n" not in said
    assert snapshot(pipe) == before
