"""Offloading and hooks of single layers around a quantization: attached meanwhile, and still there when it ends."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from accel.errors import AccelError, AccelWarning
from accel.methods import quantization
from accel.pipelines.offloading import groups
from tests.conformance.snapshot import snapshot
from tests.methods.quantized import CASE, enable, last, linear, run

HERE = torch.device("cpu")


def one_step(pipe: Any) -> torch.Tensor:
    return run(pipe, num_inference_steps=1)


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in pipe.transformer.state_dict().items()}


def require_same(pipe: Any, before: dict[str, torch.Tensor]) -> None:
    after = pipe.transformer.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("removed", "offload_buffers"),
    [("while enabled", True), ("after disable", False), ("after disable, without a run", True)],
)
def test_layers_that_are_offloaded_one_by_one(removed: str, offload_buffers: bool) -> None:
    """As `enable_sequential_cpu_offload` does it; INT8 weights have no tensor scale, which is a buffer that is None."""
    pipe = CASE.build()
    before, plain = weights(pipe), one_step(pipe)
    session = enable(pipe, quantize="int8")
    quantized = one_step(pipe)
    accelerate.cpu_offload(pipe.transformer, HERE, offload_buffers=offload_buffers)
    assert pipe.transformer.blocks[0].attn1.to_q.bias.is_meta
    if not removed.endswith("without a run"):
        assert torch.equal(one_step(pipe), quantized)
    if removed == "while enabled":
        remove_hook_from_module(pipe.transformer, recurse=True)
        assert torch.equal(one_step(pipe), quantized)
    session.disable()
    if removed != "while enabled":
        assert pipe.transformer.blocks[0].attn1.to_q.weight.is_meta, "it is offloaded as the others are"
        assert torch.equal(one_step(pipe), plain)
        remove_hook_from_module(pipe.transformer, recurse=True)
    require_same(pipe, before)
    assert torch.equal(one_step(pipe), plain)


def test_a_single_layer_that_is_offloaded_by_hand() -> None:
    """The hook then makes its own map of what the layer has, in which there is no weight while it is stored."""
    pipe = CASE.build()
    before, plain = weights(pipe), one_step(pipe)
    session = enable(pipe, quantize="nvfp4")
    layer = pipe.transformer.blocks[2].attn1.to_q
    add_hook_to_module(layer, AlignDevicesHook(HERE, offload=True))
    quantized = one_step(pipe)
    session.disable()
    assert torch.equal(one_step(pipe), plain) and not torch.equal(quantized, plain)
    remove_hook_from_module(layer)
    require_same(pipe, before)


@pytest.mark.parametrize("kind", ["leaf", "block on the disk"])
def test_groups_that_are_offloaded_meanwhile(kind: str, tmp_path: Path) -> None:
    pipe = CASE.build()
    plain = one_step(pipe)
    session = enable(pipe, quantize="int8")
    quantized = one_step(pipe)
    where: dict[str, Any] = {"onload_device": HERE, "offload_type": f"{kind[:5].strip()}_level"}
    where |= {"num_blocks_per_group": 1} if kind != "leaf" else {}
    where |= {"offload_to_disk_path": str(tmp_path)} if kind.endswith("disk") else {}
    pipe.transformer.enable_group_offload(**where)
    assert torch.equal(one_step(pipe), quantized)
    session.disable()
    assert torch.equal(one_step(pipe), plain)
    assert torch.equal(one_step(pipe), plain)
    if kind.endswith("disk"):
        weight = pipe.transformer.blocks[0].attn1.to_q.weight
        (group,) = (group for group in groups(pipe.transformer) if weight in group.tensor_to_key)
        assert "codes" not in {name for name, _ in pipe.transformer.named_buffers()}
        assert Path(group.safetensors_file_path).stat().st_size > weight.nbytes * 8, "the weights went to the disk"


def test_groups_with_a_stream_are_told_to_keep_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has no streams: here as it would be told of groups that have one."""
    pipe = CASE.build()
    with enable(pipe, quantize="int8") as session:
        one_step(pipe)
        assert "with a stream" not in str(session.summary())
        monkeypatch.setattr(quantization, "groups", lambda module: [SimpleNamespace(stream=object())])
        one_step(pipe)
    said = "int8: pipe.transformer is offloaded in groups with a stream, and the stored weights stay on the device"
    assert said in str(session.summary())


class Doubling(ModelHook):
    """Stands around a forward."""

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output * 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cp_output---proj_out", "has a forward of context parallelism: call accel.enable first"),
        ("doubling", "has a forward of offloading or casting of single layers: call accel.enable first"),
    ],
)
def test_a_layer_that_a_hook_stands_around(name: str, said: str) -> None:
    pipe = CASE.build()
    plain = one_step(pipe)
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer.proj_out)
    registry.register_hook(Doubling(), name)
    hooked, before = one_step(pipe), snapshot(pipe)
    with pytest.raises(AccelError, match=f"transformer.proj_out {said}.* or name the layer in modules_to_not_convert"):
        enable(pipe, quantize="int8", modules_to_convert=["proj_out"])
    assert snapshot(pipe) == before and torch.equal(one_step(pipe), hooked)
    # Taken off, it leaves the layer's own forward behind, as an attribute of the instance.
    registry.remove_hook(name)
    before = snapshot(pipe)
    with enable(pipe, quantize="int8", modules_to_convert=["proj_out"]) as session:
        one_step(pipe)
        assert last(session)["calls"]["int8"] == 41 * 2
        assert torch.equal(one_step(copy.deepcopy(pipe)), plain)
    assert "forward" in vars(pipe.transformer.proj_out) and snapshot(pipe) == before
    del pipe.transformer.proj_out.forward, pipe.transformer.proj_out._diffusers_hook
    # The other way round it stands around the quantized layer, and then around the plain one.
    with enable(pipe, quantize="int8", modules_to_convert=["proj_out"]) as session:
        HookRegistry.check_if_exists_or_initialize(pipe.transformer.proj_out).register_hook(Doubling(), name)
        one_step(pipe)
        assert last(session)["calls"]["int8"] == 41 * 2
    assert torch.equal(one_step(pipe), hooked)
    pipe.transformer.proj_out._diffusers_hook.remove_hook(name)
    assert torch.equal(one_step(pipe), plain)


def test_a_forward_that_was_put_there_by_hand() -> None:
    pipe = CASE.build()
    layer = pipe.transformer.blocks[1].attn1.to_q
    layer.forward = lambda x: x
    with pytest.raises(AccelError, match=r"blocks\.1\.attn1\.to_q has a forward put there by hand"):
        enable(pipe, quantize="int8")


@pytest.mark.parametrize("what", ["a block", "a linear"])
def test_what_is_replaced_meanwhile_is_told(what: str) -> None:
    pipe = CASE.build()
    with enable(pipe, quantize="int8") as session:
        if what == "a block":
            pipe.transformer.blocks[1] = copy.deepcopy(pipe.transformer.blocks[1])
        else:
            pipe.transformer.blocks[1].attn1.to_q = linear(128, 128)
        named = r"transformer\.blocks\.1\.attn1\.to_q" + (" and 9 other layers" if what == "a block" else ",")
        with pytest.warns(AccelWarning, match=f"int8: after enable something else was put in the place of {named}"):
            one_step(pipe)
    assert "put in the place of" in str(session.summary())
