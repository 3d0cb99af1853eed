"""Methods beside what else people attach to a pipeline: hooks, LoRA, offloading, compiled blocks, a second pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline
from diffusers.hooks import HookRegistry, ModelHook

import accel
from accel.errors import AccelWarning
from tests.conformance.cases import METHODS, MethodCase
from tests.conformance.snapshot import snapshot
from tests.tiny_pipelines import TINY, TinyCase, add_lora

METHOD = METHODS["delta"]


def reused(session: Any) -> int:
    return session.summary().to_dict()["runs"][-1]["methods"]["delta"]["reused"]


def acted(session: Any, method: MethodCase) -> bool:
    return method.acted(session.summary().to_dict()["runs"][-1]["methods"][method.name])


def _pair(name: str) -> tuple[TinyCase, MethodCase]:
    family, method = name.split("-")
    return TINY[family], METHODS[method]


class Doubling(ModelHook):
    """A user's hook with an effect that would show if it were lost or ran twice."""

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        return output * 1.01


@pytest.mark.parametrize(
    "name",
    [
        "wan-tdc",
        "wan-pisa",
        "wan22-delta",
        "wan22-adaspa",
        "flux-flashblock",
        "flux-delta",
        "flux-pisa",
        "flux-mixed",
    ],
)
@pytest.mark.parametrize("when", ["before", "while enabled"])
def test_lora(name: str, when: str) -> None:
    case, method = _pair(name)
    pipe = case.build()
    plain = case.run(pipe)
    if when == "before":
        add_lora(pipe)
    session = accel.enable(pipe, **method.active)
    if when != "before":
        add_lora(pipe)
    accelerated = case.run(pipe)
    assert acted(session, method)
    session.disable()
    with_lora = case.run(pipe)
    other = case.build()
    case.run(other)
    add_lora(other)
    assert torch.equal(case.run(other), with_lora), "the bits of the plain pipeline with that LoRA"
    with accel.enable(other, **method.active):
        assert torch.equal(case.run(other), accelerated)
    assert not torch.equal(plain, with_lora)
    for part in filter(None, (pipe.transformer, getattr(pipe, "transformer_2", None))):
        part.unload_lora()
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("when", ["before", "while enabled"])
def test_hooks_of_the_user_stay_in_any_order(when: str) -> None:
    case = TINY["wan"]
    pipe = case.build()
    calls: list[str] = []

    def attach() -> Any:
        block = pipe.transformer.blocks[1]
        HookRegistry.check_if_exists_or_initialize(block).register_hook(Doubling(), "doubling")
        return block.register_forward_hook(lambda *_: calls.append("called"))

    case.run(pipe)
    if when == "before":
        handle = attach()
        before = snapshot(pipe)
        expected = case.run(pipe)
        session = accel.enable(pipe, **METHOD.active)
    else:
        session = accel.enable(pipe, **METHOD.active)
        handle = attach()
        expected, before = None, None
    case.run(pipe)
    assert reused(session) > 0
    session.disable()
    session.disable()
    calls.clear()
    after = case.run(pipe)
    assert calls == ["called"] * 16, "the user's own hook is still there"
    if before is not None:
        assert snapshot(pipe) == before
        assert expected is not None
        assert torch.equal(after, expected)
    handle.remove()
    pipe.transformer.blocks[1]._diffusers_hook.remove_hook("doubling")
    assert torch.equal(case.run(pipe), case.run(case.build()))


@pytest.mark.parametrize("when", ["before", "while enabled"])
@pytest.mark.parametrize(
    "name", ["wan22-delta", "wan22-tdc", "wan22-flashblock", "cogvideox-tdc", "cogvideox-adaspa", "cogvideox-mixed"]
)
def test_model_offload(name: str, when: str) -> None:
    case, method = _pair(name)
    pipe = case.build()
    plain = case.run(pipe)
    with accel.enable(pipe, **method.active):
        accelerated = case.run(pipe)
    if when == "before":
        pipe.enable_model_cpu_offload(device="cpu")
    session = accel.enable(pipe, **method.active)
    if when != "before":
        pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(case.run(pipe), accelerated)
    assert acted(session, method)
    session.disable()
    assert torch.equal(case.run(pipe), plain)
    pipe.remove_all_hooks()
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("when", ["before", "while enabled"])
@pytest.mark.parametrize("name", ["flux-tdc", "flux-adaspa", "flux-int8"])
def test_group_offload(name: str, when: str) -> None:
    case, method = _pair(name)
    pipe = case.build()
    plain = case.run(pipe)
    with accel.enable(pipe, **method.active):
        accelerated = case.run(pipe)

    def offload() -> None:
        pipe.transformer.enable_group_offload(
            onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
        )

    if when == "before":
        offload()
    session = accel.enable(pipe, **method.active)
    if when != "before":
        offload()
    assert torch.equal(case.run(pipe), accelerated)
    assert acted(session, method)
    session.disable()
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("when", ["before", "while enabled"])
@pytest.mark.parametrize(
    "name", ["wan-delta", "wan-adaspa", "flux-tdc", "hunyuan_video-pisa", "hunyuan_video-flashblock", "wan-mixed"]
)
def test_compiled_repeated_blocks_stay_one_graph(name: str, when: str) -> None:
    case, method = _pair(name)
    pipe = case.build()
    with accel.enable(pipe, **method.active):
        eager = case.run(pipe)

    def compile_blocks() -> None:
        torch._dynamo.reset()
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")

    if when == "before":
        compile_blocks()
    compiled = [vars(block).get("_compiled_call_impl") for block in pipe.transformer.modules()]
    session = accel.enable(pipe, **method.active)
    if when != "before":
        compile_blocks()
    torch._dynamo.utils.counters.clear()
    result = case.run(pipe)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "the blocks ran compiled"
    assert not torch._dynamo.utils.counters["graph_break"]
    assert acted(session, method)
    torch.testing.assert_close(result, eager, rtol=1e-4, atol=1e-4)
    session.disable()
    if when == "before":
        assert [vars(block).get("_compiled_call_impl") for block in pipe.transformer.modules()] == compiled
    else:
        blocks = [*pipe.transformer.modules()]
        assert any(vars(block).get("_compiled_call_impl") is not None for block in blocks), "still compiled"


def test_a_transformer_compiled_as_a_whole_while_enabled_is_said_to_run_plainly() -> None:
    case = TINY["flux"]
    pipe = case.build()
    session = accel.enable(pipe, **METHOD.active)
    pipe.transformer.compile(backend="eager")
    with pytest.warns(AccelWarning, match="compiled as a whole after enable"):
        case.run(pipe)
    session.disable()
    assert "compiled as a whole" in str(session.summary())


def test_a_second_expert_that_came_while_enabled_is_said_to_run_plainly() -> None:
    case = TINY["wan22"]
    pipe: Any = case.build()
    second, pipe.transformer_2 = pipe.transformer_2, None
    with accel.enable(pipe, cache="delta", interval=1) as session:
        pipe.transformer_2 = second
        with pytest.warns(AccelWarning, match=r"pipe\.transformer_2 was replaced after enable and runs plainly"):
            case.run(pipe)
    assert "transformer_2 was replaced" in str(session.summary())


def test_a_transformer_replaced_while_enabled_is_said_to_run_plainly() -> None:
    case = TINY["flux"]
    pipe: Any = case.build()
    session = accel.enable(pipe, **METHOD.active)
    pipe.transformer = case.build(seed=1).transformer
    with pytest.warns(AccelWarning, match="replaced after enable"):
        case.run(pipe)
    session.disable()


def test_a_shared_transformer_runs_plainly_in_the_other_pipeline() -> None:
    case = TINY["wan"]
    pipe = case.build()
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    plain = case.run(pipe)
    with accel.enable(pipe, **METHOD.active) as session:
        accelerated = case.run(pipe)
        assert torch.equal(case.run(other), plain)
        assert session.summary().to_dict()["calls_outside_runs"] == 16
        with pytest.raises(accel.AccelError, match="accelerated already"):
            accel.enable(other, **METHOD.active)
        assert torch.equal(case.run(pipe), accelerated)
    with accel.enable(other, **METHOD.active):
        assert torch.equal(case.run(other), accelerated)
        assert torch.equal(case.run(pipe), plain)


def test_a_broken_run_of_one_pipeline_does_not_reach_the_other() -> None:
    case = TINY["wan"]
    pipe = case.build()
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    plain = case.run(pipe)

    def stop(_pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            raise KeyboardInterrupt
        return kwargs

    with accel.enable(pipe, **METHOD.active):
        with pytest.raises(KeyboardInterrupt):
            case.run(pipe, callback_on_step_end=stop)
        assert torch.equal(case.run(other), plain)


def test_several_videos_at_once_and_interrupted_runs() -> None:
    case = TINY["wan"]
    pipe = case.build()

    def interrupt(running: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        running._interrupt = step == 3
        return kwargs

    with accel.enable(pipe, **METHOD.active) as session:
        alone = case.run(pipe)
        case.run(pipe, num_videos_per_prompt=2)
        assert reused(session) > 0
        case.run(pipe, callback_on_step_end=interrupt)
        run = session.summary().to_dict()["runs"][-1]
        assert run["state"] == "broken off"
        assert "cut short" in str(session.summary())
        assert torch.equal(case.run(pipe), alone)


def test_image_to_image_and_true_guidance_on_pipelines_that_do_not_name_their_branches() -> None:
    case = TINY["flux"]
    base: Any = case.build()
    pipe = FluxImg2ImgPipeline(**base.components)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand((1, 3, 44, 52), generator=torch.Generator().manual_seed(7))
    call = {"image": image, "strength": 0.75, "true_cfg_scale": 2.0, "negative_prompt": "blurred"}
    plain = case.run(pipe, **call)
    with accel.enable(pipe, **METHOD.identity) as session:
        assert torch.equal(case.run(pipe, **call), plain)
    run = session.summary().to_dict()["runs"][0]
    assert (run["steps"], run["planned_steps"], run["branches"]) == (6, 6, ["cond", "uncond"])
    with accel.enable(pipe, **METHOD.active) as session:
        accelerated = case.run(pipe, **call)
        assert torch.equal(case.run(pipe, **call), accelerated)
    run = session.summary().to_dict()["runs"][0]
    assert run["state"] == "finished"
    # Both branches reuse in the same steps.
    assert all(count % 2 == 0 for count in run["methods"]["delta"]["reused_by_step"])
    assert reused(session) > 0
    assert torch.equal(case.run(pipe, **call), plain)


@pytest.mark.parametrize(
    "name",
    [
        "wan22-pisa-tdc",
        "wan_vace-adaspa-delta",
        "flux_controlnet-pisa-delta",
        "cogvideox-adaspa-tdc",
        "wan22-adaspa-flashblock",
    ],
)
def test_a_cache_and_a_sparse_attention_together(name: str) -> None:
    family, *methods = name.split("-")
    case, (sparse, cache) = TINY[family], (METHODS[method] for method in methods)
    pipe = case.build()
    plain = case.run(pipe)
    before = snapshot(pipe)
    with accel.enable(pipe, **{**cache.active, **sparse.active}) as session:
        first, second = case.run(pipe), case.run(pipe)
    assert acted(session, sparse) and acted(session, cache)
    assert torch.equal(first, second)
    assert (first - plain).norm() < 0.3 * plain.norm()
    assert snapshot(pipe) == before
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("attention", [{"attention": "adaspa"}, {"attention": "pisa", "router": "search"}])
def test_the_steps_of_a_search_are_computed(attention: dict[str, Any]) -> None:
    case = TINY["wan"]
    pipe = case.build()
    settings = {"search_steps": (0.0, 0.5), "density": 0.5, **attention}
    with accel.enable(pipe, **settings, **METHODS["tdc"].active) as session:
        case.run(pipe)
    run = session.summary().to_dict()["runs"][0]
    reused = [count > 0 for count in run["methods"]["tdc"]["reused_by_step"]]
    # Without the search, the fourth and fifth step would be skipped.
    assert reused == [False, False, False, True, False, True, True, False]
    (fallback,) = (found for found in run["fallbacks"] if found["method"] == "tdc")
    assert fallback["reason"] == f"{attention['attention']}: a search is due"


def test_the_attention_of_a_probe_block_stays_dense() -> None:
    case = TINY["wan"]
    pipe = case.build()
    attention = accel.PISAConfig(density=0.5, dense_layers=0, dense_steps=0.0)
    with accel.enable(pipe, attention=attention) as session:
        case.run(pipe)
    calls = session.summary().to_dict()["runs"][0]["methods"]["pisa"]
    assert calls["sparse"] == calls["attention_calls"] == 4 * 2 * 8
    with accel.enable(pipe, attention=attention, cache="tdc", units="probe", threshold=0.0) as session:
        case.run(pipe)
    calls = session.summary().to_dict()["runs"][0]["methods"]["pisa"]
    assert (calls["sparse"], calls["attention_calls"]) == (3 * 2 * 8, 4 * 2 * 8)
