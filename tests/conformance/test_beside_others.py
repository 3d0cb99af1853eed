"""What others do to a transformer while Accel is on it: their caches, their loops, one model in two places."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
)

import accel
from accel.errors import AccelWarning
from accel.measure.wrapped import wrapped
from accel.pipelines.other_caches import foreign_forward, other_cache
from accel.pipelines.sites import inspect_pipeline
from tests.conformance.cases import FAMILIES, METHODS
from tests.conformance.snapshot import snapshot
from tests.tiny_pipelines import KIN, TINY


def first_block(pipe: Any) -> None:
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.5))


def taylorseer(pipe: Any) -> None:
    config = TaylorSeerCacheConfig(cache_interval=2, cache_identifiers=[r"blocks\.\d+"])
    apply_taylorseer_cache(pipe.transformer, config)


def broadcast(pipe: Any) -> None:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: pipe._current_timestep
    )
    apply_pyramid_attention_broadcast(pipe.transformer, config)


def dbcache(pipe: Any) -> None:
    cache_dit = pytest.importorskip("cache_dit")
    cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0))


def undo(pipe: Any, put_on: Callable[[Any], None]) -> None:
    if put_on is dbcache:  # It leaves marks on the pipeline's class.
        pytest.importorskip("cache_dit").disable_cache(pipe)


OTHERS = [
    (first_block, "a cache of diffusers is on in pipe.transformer"),
    (taylorseer, "a cache of diffusers is on in pipe.transformer"),
    (broadcast, "a cache of diffusers is on in pipe.transformer"),
    (dbcache, "a cache of cache-dit is on in pipe.transformer"),
]


@pytest.mark.parametrize(("put_on", "said"), OTHERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_cache_that_is_on_already_is_refused(put_on: Callable[[Any], None], said: str) -> None:
    pipe: Any = TINY["wan"].build()
    put_on(pipe)
    try:
        with pytest.raises(accel.AccelError, match=said) as refusal:
            accel.enable(pipe, cache="tdc")
        assert "\n" not in str(refusal.value)
        assert not any("_compiled_call_impl" in vars(module) for module in pipe.transformer.modules())
    finally:
        undo(pipe, put_on)
    if put_on is dbcache:
        with accel.enable(pipe, cache="tdc", threshold=0.0) as session:
            TINY["wan"].run(pipe, num_inference_steps=2)
        assert session.summary().to_dict()["runs"][0]["steps"] == 2


@pytest.mark.parametrize(("put_on", "said"), OTHERS[:1] + OTHERS[-1:], ids=lambda value: getattr(value, "__name__", ""))
def test_a_cache_that_came_after_enable_is_named(put_on: Callable[[Any], None], said: str) -> None:
    pipe: Any = TINY["wan"].build()
    with accel.enable(pipe, cache="tdc", threshold=0.0) as session:
        put_on(pipe)
        try:
            with pytest.warns(AccelWarning, match=f"{said} beside Accel: use one of the two"):
                TINY["wan"].run(pipe, num_inference_steps=2)
        finally:
            undo(pipe, put_on)
    assert said in str(session.summary())


@pytest.mark.parametrize("where", ["instance", "class"])
def test_a_forward_of_others_is_named(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As patches do that give back a kept result for some of the steps."""
    pipe: Any = TINY["flux"].build()
    transformer, own = pipe.transformer, type(pipe.transformer).forward
    kept: list[Any] = []

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kept or len(kept) % 2:
            kept.append(own(self, *args, **kwargs))
        else:
            kept.append(kept[-1])
        return kept[-1]

    if where == "instance":
        transformer.forward = types.MethodType(forward, transformer)
    else:
        monkeypatch.setattr(type(transformer), "forward", forward)
    with (
        accel.enable(pipe, cache="delta") as session,
        pytest.warns(AccelWarning, match=r"pipe\.transformer computes by another forward"),
    ):
        TINY["flux"].run(pipe)
    assert "computes by another forward" in str(session.summary())


def test_offloading_is_no_forward_of_others(recwarn: pytest.WarningsRecorder) -> None:
    pipe: Any = TINY["flux"].build()
    with accel.enable(pipe, cache="delta") as session:
        for put_on in (
            lambda: pipe.enable_model_cpu_offload(device="cpu"),
            lambda: pipe.remove_all_hooks(),
            lambda: pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
        ):
            put_on()
            TINY["flux"].run(pipe, num_inference_steps=8)
    assert not [found for found in recwarn if issubclass(found.category, AccelWarning)]
    assert all("forward" not in note for run in session.summary().to_dict()["runs"] for note in run["notes"])


@pytest.mark.parametrize("cache", [{"cache": "tdc", "threshold": 10.0}, METHODS["delta"].active])
@pytest.mark.parametrize("scales", [(5.0, 5.0), (1.0, 5.0)], ids=["guided", "guided inside alone"])
def test_another_pipeline_called_from_a_callback_runs_plainly(
    cache: dict[str, Any], scales: tuple[float, float]
) -> None:
    """A preview, as a pipeline of its own on the same transformer."""
    case = TINY["wan"]
    pipe: Any = case.build()
    other: Any = type(pipe)(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)})
    other.set_progress_bar_config(disable=True)
    outer, inner = (dict[str, Any]({"guidance_scale": scale}) for scale in scales)
    plain = case.run(other, seed=5, num_inference_steps=3, **inner)
    previews = []

    def preview(_pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step in (3, 4):
            previews.append(case.run(other, seed=5, num_inference_steps=3, **inner))
        return kwargs

    with accel.enable(pipe, **cache) as session:
        alone = case.run(pipe, **outer)
        assert torch.equal(case.run(pipe, callback_on_step_end=preview, **outer), alone)
    assert all(torch.equal(found, plain) for found in previews) and len(previews) == 2
    summary = session.summary().to_dict()
    assert summary["calls_outside_runs"] == 2 * 3 * 2
    assert summary["runs"][0]["methods"] == summary["runs"][1]["methods"]
    assert [run["branches"] for run in summary["runs"]] == [summary["runs"][0]["branches"]] * 2
    assert [run["steps"] for run in summary["runs"]] == [8, 8]


def test_one_model_for_both_experts() -> None:
    """Wan 2.2 with one of its two models in both places is one denoiser, whose steps are counted once."""
    case = TINY["wan22"]
    pipe: Any = case.build()
    pipe.transformer_2 = pipe.transformer
    plain, before = case.run(pipe), snapshot(pipe)
    with accel.enable(pipe, cache="tdc", threshold=0.0):
        assert torch.equal(case.run(pipe), plain)
    with accel.enable(pipe, **METHODS["tdc"].active) as session:
        case.run(pipe)
    run = session.summary().to_dict()["runs"][0]
    assert (run["steps"], run["planned_steps"]) == (8, 8)
    assert METHODS["tdc"].acted(run["methods"]["tdc"]) and run["methods"]["tdc"]["block_calls"] == 4 * 8 * 2
    assert snapshot(pipe) == before


@pytest.mark.parametrize("method", ["pisa", "flashblock"])
def test_processors_of_others_are_the_reason_that_is_told(method: str) -> None:
    """As an IP-adapter puts them in, while the method is on: no setting is to blame."""
    case = TINY["flux"]
    pipe: Any = case.build()
    own = {name: type(processor)() for name, processor in pipe.transformer.attn_processors.items()}
    plain = case.run(pipe)
    session = accel.enable(pipe, **METHODS[method].active)
    pipe.transformer.set_attn_processor(own)
    with pytest.warns(AccelWarning) as found:
        assert torch.equal(case.run(pipe), plain)
    session.disable()
    texts = sorted(str(warning.message) for warning in found if issubclass(warning.category, AccelWarning))
    assert len(texts) == 2 and "got another processor after enable and run plainly" in texts[0]
    assert texts[1] == f"{method} was on and did nothing: none of the attentions that it stands in for was called"


@pytest.mark.parametrize("name", sorted({**FAMILIES, **KIN}))
def test_a_plain_pipeline_has_no_forward_of_others(name: str) -> None:
    for denoiser in inspect_pipeline({**FAMILIES, **KIN}[name].build()).denoisers:
        assert foreign_forward(denoiser.name, denoiser.module) is None
        assert other_cache(denoiser.name, denoiser.module) is None


def test_what_measures_a_run_is_not_taken_for_a_forward_of_others() -> None:
    """`accel bench` and `accel profile` stand around the forward; one of others below them is still named."""
    transformer = TINY["wan"].build().transformer
    with wrapped(transformer, "forward", lambda original, *args, **kwargs: original(*args, **kwargs)):
        assert foreign_forward("transformer", transformer) is None
    transformer.forward = types.MethodType(lambda self, *args, **kwargs: None, transformer)
    with wrapped(transformer, "forward", lambda original, *args, **kwargs: original(*args, **kwargs)):
        assert foreign_forward("transformer", transformer) is not None
