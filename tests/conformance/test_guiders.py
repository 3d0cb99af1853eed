"""Guiders with branches beside the usual two, or with layers left out for one: each branch has a state of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from diffusers.guiders import (
    AutoGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
)
from diffusers.hooks import LayerSkipConfig, SmoothedEnergyGuidanceConfig

import accel
from accel.pipelines.sites import inspect_pipeline
from tests.conformance.cases import METHODS
from tests.conformance.snapshot import snapshot
from tests.tiny_pipelines import TINY

PAIR = ("pred_cond", "pred_uncond")
ALWAYS = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}


def skip(stack: str = "transformer_blocks", **what: Any) -> LayerSkipConfig:
    return LayerSkipConfig([1], fqn=stack, **what)


def skip_layers(config: LayerSkipConfig, **settings: Any) -> SkipLayerGuidance:
    return SkipLayerGuidance(skip_layer_config=config, **{**ALWAYS, **settings})


GUIDERS: dict[str, tuple[str, Callable[[], Any], tuple[str, ...]]] = {
    "blocks": ("motif_video", lambda: skip_layers(skip()), (*PAIR, "pred_cond_skip")),
    "a part of the run": (
        "motif_video",
        lambda: skip_layers(skip(), skip_layer_guidance_start=0.4, skip_layer_guidance_stop=0.9),
        (*PAIR, "pred_cond_skip"),
    ),
    "feed-forwards": (
        "hunyuan_video15",
        lambda: skip_layers(skip(skip_attention=False)),
        (*PAIR, "pred_cond_skip"),
    ),
    "autoguidance": ("motif_video", lambda: AutoGuidance(auto_guidance_config=skip()), PAIR),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "together": {"attention": accel.PISAConfig(density=0.5, dense_layers=1), "cache": "delta", "quantize": "int8"},
    "tdc": METHODS["tdc"].active,
    "flashblock": METHODS["flashblock"].active,
    "adaspa": METHODS["adaspa"].active,
}


@cache
def built(guider: str) -> tuple[Any, torch.Tensor]:
    """The pipeline with its guider, and what it gives."""
    family, make, _ = GUIDERS[guider]
    pipe = TINY[family].build()
    pipe.guider = make()
    return pipe, TINY[family].run(pipe)


@pytest.mark.parametrize(
    ("guider", "settings"),
    [
        ("blocks", "together"),
        ("blocks", "flashblock"),
        ("a part of the run", "tdc"),
        ("a part of the run", "adaspa"),
        ("feed-forwards", "together"),
        ("autoguidance", "tdc"),
    ],
)
def test_acts_in_every_branch_and_comes_off(guider: str, settings: str) -> None:
    family, _, branches = GUIDERS[guider]
    case, (pipe, plain) = TINY[family], built(guider)
    before = snapshot(pipe)
    assert inspect_pipeline(pipe).guidance.order == branches
    with accel.enable(pipe, **SETTINGS[settings]) as session:
        first = case.run(pipe)
        assert torch.equal(case.run(pipe), first)
    run = session.summary().to_dict()["runs"][-1]
    assert (run["state"], run["steps"]) == ("finished", case.steps)
    for name, report in run["methods"].items():
        assert METHODS[name].acted(report), name
    ran = session._recorder.runs[-1]
    assert tuple(ran.branches) == branches
    name = next(name for name in ("delta", "tdc", "flashblock", "adaspa") if name in run["methods"])
    approximated = {"delta": "reused", "tdc": "reused", "flashblock": "reused", "adaspa": "sparse"}[name]
    seen = {branch for (by, what, _, branch, _) in ran.events if (by, what) == (name, approximated)}
    assert seen == set(branches), "the method acts in each branch"
    assert 0 < (first - plain).norm() < 0.3 * plain.norm()
    assert snapshot(pipe) == before
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("guider", ["blocks", "feed-forwards", "autoguidance"])
def test_identity_settings_give_the_plain_bits(guider: str) -> None:
    case, (pipe, plain) = TINY[GUIDERS[guider][0]], built(guider)
    exact = {"attention": accel.PISAConfig(density=1.0), "cache": accel.DeltaCacheConfig(interval=1)}
    with accel.enable(pipe, **exact):
        assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("method", ["delta", "tdc", "flashblock"])
@pytest.mark.parametrize("guider", ["blocks", "autoguidance"])
def test_no_branch_sees_the_state_of_another(guider: str, method: str) -> None:
    """Every step asks each branch for the same as the first, so that what is kept of it is what would be computed."""
    case, (pipe, _) = TINY[GUIDERS[guider][0]], built(guider)
    noted: list[dict[str, Any]] = []
    handle = pipe.transformer.register_forward_pre_hook(lambda *call: noted.append(call[2]), with_kwargs=True)
    case.run(pipe, num_inference_steps=1)
    handle.remove()
    conditional, unconditional = noted
    asked = {"pred_cond": conditional, "pred_uncond": unconditional, "pred_cond_skip": conditional}

    def ask(branch: str) -> torch.Tensor:
        pipe.guider.prepare_models(pipe.transformer)
        with torch.no_grad(), pipe.transformer.cache_context(branch):
            output = pipe.transformer(**asked[branch])[0]
        pipe.guider.cleanup_models(pipe.transformer)
        return output

    # Skip-layer guidance begins with the second step.
    pipe.guider.set_state(step=1, num_inference_steps=8, timestep=None)
    plain = {branch: ask(branch) for branch in GUIDERS[guider][2]}
    apart = [(plain[branch] - plain["pred_cond"]).norm() / plain["pred_cond"].norm() for branch in plain]
    assert min(apart[1:]) > 0.01, "branches are told apart by what they give"
    with accel.enable(pipe, **METHODS[method].active) as session, pipe.progress_bar(total=8):
        for _ in range(8):
            pipe.guider.set_state(step=1, num_inference_steps=8, timestep=None)
            for branch, expected in plain.items():
                assert (ask(branch) - expected).norm() <= 1e-5 * expected.norm(), branch
    assert METHODS[method].acted(session.summary().to_dict()["runs"][-1]["methods"][method])


@pytest.mark.parametrize(
    ("family", "make", "reason"),
    [
        (
            "hunyuan_video15",
            lambda: PerturbedAttentionGuidance(perturbed_guidance_layers=[1]),
            "PerturbedAttentionGuidance, which cannot be followed: diffusers skips attention by the class of its",
        ),
        (
            "motif_video",
            lambda: SmoothedEnergyGuidance(seg_guidance_config=SmoothedEnergyGuidanceConfig([1])),
            "SmoothedEnergyGuidance, which cannot be followed: it blurs queries by the places of their tokens",
        ),
        ("motif_video", lambda: skip_layers(skip(skip_ff=False)), "by the class of its processor"),
        ("hunyuan_video15", lambda: skip_layers(skip()), "a whole HunyuanVideo15TransformerBlock, only its feed-forw"),
        ("motif_video", lambda: skip_layers(skip(), start=0.5), "without classifier-free guidance it calls the branch"),
        (
            "motif_video",
            lambda: AutoGuidance(auto_guidance_config=skip(dropout=0.5)),
            "with dropout=0.5 it drops outputs at random",
        ),
    ],
)
def test_a_guider_that_cannot_be_followed_is_refused_in_one_line(
    family: str, make: Callable[[], Any], reason: str
) -> None:
    pipe = _plainly(family)
    before = snapshot(pipe)
    pipe.guider = make()
    try:
        with pytest.raises(accel.AccelError, match=reason) as refused:
            accel.enable(pipe, cache="delta")
    finally:
        pipe.guider = ClassifierFreeGuidance()
    assert "\n" not in str(refused.value) and str(refused.value).startswith("pipe.guider is a ")
    assert snapshot(pipe) == before


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: skip_layers(skip(skip_attention=False)), "by a SkipLayerGuidance, which has other branches"),
        (lambda: PerturbedAttentionGuidance(perturbed_guidance_layers=[1]), "which cannot be followed"),
    ],
)
def test_a_guider_that_came_after_enable_stops_the_run_before_it_begins(make: Callable[[], Any], reason: str) -> None:
    pipe = _plainly("hunyuan_video15")
    case = TINY["hunyuan_video15"]
    calls: list[int] = []
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with accel.enable(pipe, quantize="int8") as session:
            pipe.guider = make()
            with pytest.raises(accel.AccelError, match=reason):
                case.run(pipe, num_inference_steps=2)
            assert not calls and not session.summary().to_dict()["runs"]
            pipe.guider = ClassifierFreeGuidance()
            case.run(pipe, num_inference_steps=2)
            assert len(calls) == 4
    finally:
        handle.remove()
        pipe.guider = ClassifierFreeGuidance()


@cache
def _plainly(family: str) -> Any:
    return TINY[family].build()
