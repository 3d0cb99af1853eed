"""What else people do with a pipeline, with every method on every family: `--grid=whole` only.

The sample of these, with what they leave behind looked at more closely, is in `test_company.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import accel
from accel.pipelines.sites import inspect_pipeline
from tests.conformance.cases import MethodCase
from tests.conformance.test_methods import last_run
from tests.tiny_pipelines import TinyCase, add_lora

pytestmark = pytest.mark.whole_grid


def denoisers(pipe: Any) -> list[Any]:
    return [part for name in ("transformer", "transformer_2") if (part := getattr(pipe, name, None)) is not None]


def acted(session: Any, method: MethodCase) -> bool:
    return method.acted(last_run(session)["methods"][method.name])


def assert_near(method: MethodCase, result: torch.Tensor, plain: torch.Tensor) -> None:
    assert 0 < (result - plain).norm() < method.error * plain.norm()


def test_model_offload(method: MethodCase, case: TinyCase, plain: torch.Tensor, accelerated: torch.Tensor) -> None:
    pipe = case.build()
    if pipe.model_cpu_offload_seq is None:
        pytest.skip("diffusers has no model offload for this pipeline")
    pipe.enable_model_cpu_offload(device="cpu")
    with accel.enable(pipe, **method.active) as session:
        assert torch.equal(case.run(pipe), accelerated)
    assert acted(session, method)
    assert torch.equal(case.run(pipe), plain)


def test_group_offload(method: MethodCase, case: TinyCase, plain: torch.Tensor, accelerated: torch.Tensor) -> None:
    pipe = case.build()
    if not all(part._supports_group_offloading for part in denoisers(pipe)):
        pytest.skip("diffusers has no group offload for this transformer")
    for part in denoisers(pipe):
        part.enable_group_offload(onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    with accel.enable(pipe, **method.active) as session:
        assert torch.equal(case.run(pipe), accelerated)
    assert acted(session, method)
    assert torch.equal(case.run(pipe), plain)


def test_lora(method: MethodCase, case: TinyCase, plain: torch.Tensor) -> None:
    pipe = case.build()
    if not all(hasattr(part, "add_adapter") for part in denoisers(pipe)):
        pytest.skip("diffusers has no LoRA for this transformer")
    add_lora(pipe)
    with_lora = case.run(pipe)
    assert not torch.equal(with_lora, plain)
    with accel.enable(pipe, **method.active) as session:
        result = case.run(pipe)
        assert acted(session, method)
        assert torch.equal(case.run(pipe), result), "the second run differs from the first"
    assert_near(method, result, with_lora)
    assert acted(session, method)
    assert torch.equal(case.run(pipe), with_lora)
    for part in denoisers(pipe):
        part.unload_lora()
    assert torch.equal(case.run(pipe), plain)


def test_compiled_repeated_blocks(method: MethodCase, case: TinyCase, accelerated: torch.Tensor) -> None:
    pipe = case.build()
    if not all(getattr(part, "_repeated_blocks", None) for part in denoisers(pipe)):
        pytest.skip("diffusers names no repeated blocks of this transformer")
    torch._dynamo.reset()
    for part in denoisers(pipe):
        part.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    with accel.enable(pipe, **method.active) as session:
        torch._dynamo.utils.counters.clear()
        result = case.run(pipe)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "the blocks ran compiled"
        assert not torch._dynamo.utils.counters["graph_break"]
    assert acted(session, method)
    torch.testing.assert_close(result, accelerated, rtol=1e-4, atol=1e-4)


def test_the_other_form_of_guidance(method: MethodCase, case: TinyCase, pipe: Any) -> None:
    """One branch where the usual call has two, two where the pipeline's guidance is distilled."""
    if case.other_guidance is None:
        pytest.skip("this pipeline has one form of guidance alone")
    facts = inspect_pipeline(pipe)
    form, order = facts.guidance.form, facts.guidance.order
    # Pipelines that call once for both branches call that one, whatever it holds.
    one = {"cond_uncond"} if form == "batched" else {name for name in order if "uncond" not in name}
    samples = 0

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal samples
        (denoiser,) = (each for each in facts.denoisers if each.module is module)
        samples += len(denoiser.argument("hidden_states", args, kwargs))

    counting = [each.module.register_forward_pre_hook(count, with_kwargs=True) for each in facts.denoisers]
    plain = case.run(pipe, **case.other_guidance)
    for handle in counting:
        handle.remove()
    assert samples == case.steps * (2 if form == "distilled" else 1) + case.filling
    with accel.enable(pipe, **method.active) as session:
        result = case.run(pipe, **case.other_guidance)
        assert set(last_run(session)["branches"]) == (set(order) if form == "distilled" else one)
        assert acted(session, method)
        assert torch.equal(case.run(pipe, **case.other_guidance), result), "the second run differs from the first"
    assert_near(method, result, plain)
    if method.identity is not None:
        with accel.enable(pipe, **method.identity):
            assert torch.equal(case.run(pipe, **case.other_guidance), plain)
    assert torch.equal(case.run(pipe, **case.other_guidance), plain)
