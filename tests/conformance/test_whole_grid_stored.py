"""What people do with quantized weights, with every quantization on every family: `--grid=whole` only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import accel
from accel.errors import AccelError
from accel.methods.base import registered
from tests.conformance.cases import MethodCase
from tests.conformance.test_whole_grid import acted, denoisers
from tests.tiny_pipelines import TinyCase, add_lora

pytestmark = pytest.mark.whole_grid


def test_lora_loaded_while_enabled(method: MethodCase, case: TinyCase, plain: torch.Tensor) -> None:
    pipe = case.build()
    if not all(hasattr(part, "add_adapter") for part in denoisers(pipe)):
        pytest.skip("diffusers has no LoRA for this transformer")
    with accel.enable(pipe, **method.active) as session:
        without = case.run(pipe)
        add_lora(pipe)
        assert not torch.equal(case.run(pipe), without), "the adapter acts"
        assert acted(session, method)
        for part in denoisers(pipe):
            part.unload_lora()
        assert torch.equal(case.run(pipe), without)
    assert torch.equal(case.run(pipe), plain)


def test_fusing_is_refused(method: MethodCase, case: TinyCase) -> None:
    pipe = case.build()
    fusions = [
        (part, name)
        for part in denoisers(pipe)
        for name in ("fuse_lora", "unfuse_lora", "fuse_qkv_projections")
        if hasattr(part, name)
    ]
    if not fusions:
        pytest.skip("diffusers fuses nothing in this transformer")
    line = f"changes weights, and those of this model are stored by {method.name}: call accel.disable"
    with accel.enable(pipe, **method.active):
        for part, name in fusions:
            with pytest.raises(AccelError, match=f"{name} {line}"):
                getattr(part, name)()
    assert not any(name in vars(part) for part, name in fusions), "the refusal goes with the method"


def test_stored_saved_and_read_again(method: MethodCase, case: TinyCase, tmp_path: Path) -> None:
    settings = {name: value for name, value in method.active.items() if name != "quantize"}
    original = case.build()
    original.save_pretrained(tmp_path / "original")
    with accel.enable(original, **method.active):
        expected = case.run(original)
    config = registered()[method.name].config(**settings)
    stored: Any = accel.load_pipeline(tmp_path / "original", quantize=config)
    stored.save_pretrained(tmp_path / "stored")
    again: Any = accel.load_pipeline(tmp_path / "stored")
    again.set_progress_bar_config(disable=True)
    # Where a model that was built in memory has them: products on a CPU round by alignment.
    for component in again.components.values():
        if isinstance(component, torch.nn.Module):
            for tensor in (*component.parameters(), *component.buffers()):
                tensor.data = tensor.data.clone()
    with accel.enable(again, **method.active) as session:
        assert torch.equal(case.run(again), expected), "as if quantized by enable"
    assert acted(session, method)
