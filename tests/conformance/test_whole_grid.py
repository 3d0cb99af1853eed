"""What else people do with a pipeline, with every method on every family: `--grid=whole` only.

The sample of these, with what they leave behind looked at more closely, is in `test_company.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import accel
from tests.conformance.cases import MethodCase
from tests.conformance.test_methods import last_run
from tests.tiny_pipelines import TinyCase, add_lora

pytestmark = pytest.mark.whole_grid


def denoisers(pipe: Any) -> list[Any]:
    return [part for name in ("transformer", "transformer_2") if (part := getattr(pipe, name, None)) is not None]


def acted(session: Any, method: MethodCase) -> bool:
    return method.acted(last_run(session)["methods"][method.name])


def test_model_offload(method: MethodCase, case: TinyCase, plain: torch.Tensor) -> None:
    pipe = case.build()
    if pipe.model_cpu_offload_seq is None:
        pytest.skip("diffusers has no model offload for this pipeline")
    with accel.enable(pipe, **method.active):
        expected = case.run(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    with accel.enable(pipe, **method.active) as session:
        assert torch.equal(case.run(pipe), expected)
    assert acted(session, method)
    assert torch.equal(case.run(pipe), plain)


def test_group_offload(method: MethodCase, case: TinyCase, plain: torch.Tensor) -> None:
    pipe = case.build()
    if not all(part._supports_group_offloading for part in denoisers(pipe)):
        pytest.skip("diffusers has no group offload for this transformer")
    with accel.enable(pipe, **method.active):
        expected = case.run(pipe)
    for part in denoisers(pipe):
        part.enable_group_offload(onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    with accel.enable(pipe, **method.active) as session:
        assert torch.equal(case.run(pipe), expected)
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
        assert not torch.equal(case.run(pipe), with_lora)
    assert acted(session, method)
    assert torch.equal(case.run(pipe), with_lora)
    for part in denoisers(pipe):
        part.unload_lora()
    assert torch.equal(case.run(pipe), plain)


def test_compiled_repeated_blocks(method: MethodCase, case: TinyCase) -> None:
    pipe = case.build()
    if not all(getattr(part, "_repeated_blocks", None) for part in denoisers(pipe)):
        pytest.skip("diffusers names no repeated blocks of this transformer")
    with accel.enable(pipe, **method.active):
        eager = case.run(pipe)
    torch._dynamo.reset()
    for part in denoisers(pipe):
        part.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    with accel.enable(pipe, **method.active) as session:
        torch._dynamo.utils.counters.clear()
        result = case.run(pipe)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "the blocks ran compiled"
        assert not torch._dynamo.utils.counters["graph_break"]
    assert acted(session, method)
    torch.testing.assert_close(result, eager, rtol=1e-4, atol=1e-4)
