"""The profile of a run: what its layers had to do, and what the device can do at best."""

import json

import pytest
import torch

import accel
from accel.measure.ceilings import Ceilings, ceilings
from accel.measure.profiling import profiled
from accel.reporting.roofline import roofline, waterline
from tests.tiny_pipelines import TINY, add_lora

LIMITS = Ceilings(flops=1e12, bandwidth=1e11)


@pytest.fixture(scope="module")
def wan():
    pipe = TINY["wan"].build()
    pipe.set_progress_bar_config(disable=True)
    run(pipe, steps=1)()  # A pipeline sets attributes of its own in its first call.
    return pipe


def run(pipe, steps=2):
    return lambda: TINY["wan"].run(pipe, num_inference_steps=steps)


def test_layers_are_counted_by_formula_and_named_in_the_trace(wan, tmp_path):
    before = {name: sorted(vars(module)) for name, module in wan.transformer.named_modules()}
    found = profiled(wan, run(wan), tmp_path / "trace.json")
    assert {name: sorted(vars(module)) for name, module in wan.transformer.named_modules()} == before
    blocks = len(wan.transformer.blocks)
    layers = {layer.name: layer for layer in found.layers}
    query = layers["linear transformer 0.attn1.to_q"]
    attention = layers["attention transformer 0.attn1"]
    inner, calls = wan.transformer.blocks[0].attn1.to_q.out_features, query.calls
    assert attention.calls == calls > 0 and len(found.blocks) == blocks
    tokens = round(query.flops / calls / (2 * inner * inner))
    assert tokens >= 512 and query.flops == calls * 2 * tokens * inner * inner
    assert attention.flops == calls * 4 * tokens * tokens * inner
    weight = wan.transformer.blocks[0].attn1.to_q
    stored = weight.weight.nbytes + weight.bias.nbytes
    assert query.moved == calls * (2 * tokens * inner * 4 + stored)
    assert all(layer.seconds > 0 for layer in found.layers if layer.flops)
    assert 0 < sum(found.blocks) <= found.parts["denoiser"] <= found.seconds
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"accel.block transformer 0", "accel.linear transformer 0.attn1.to_q", "accel.denoiser"} <= names
    (products,) = (one for one in found.operations if one.name == "aten::addmm")
    linears = sum(layer.flops for layer in found.layers if layer.name.startswith("linear"))
    assert linears < products.flops < 2 * linears, "there are some outside of the blocks too"


def test_a_fused_projection_and_a_lora_around_one_do_not_hide_the_width(monkeypatch):
    tiny = TINY["flux2"]
    pipe = tiny.build()
    add_lora(pipe)
    pipe.set_progress_bar_config(disable=True)
    found = {layer.name: layer for layer in profiled(pipe, lambda: tiny.run(pipe, num_inference_steps=1)).layers}
    assert all(layer.counted and layer.flops > 0 for name, layer in found.items() if name.startswith("attention"))
    blocks = len(pipe.transformer.transformer_blocks)
    single = found[f"attention transformer {blocks}.attn"]
    # Both attend among all tokens of text and picture together, with the same width.
    double = found["attention transformer 0.attn"]
    assert single.flops / single.calls == double.flops / double.calls


def test_what_tells_no_width_is_not_counted(wan, monkeypatch):
    monkeypatch.setattr("accel.measure.profiling._width", lambda attention: None)
    layers = profiled(wan, run(wan, steps=1)).layers
    assert {layer.counted for layer in layers if layer.name.startswith("attention")} == {False}
    assert all(layer.counted for layer in layers if layer.name.startswith("linear"))


def test_methods_show_by_their_own_operations(wan):
    with accel.enable(wan, attention="pisa", density=0.25):
        found = profiled(wan, run(wan, steps=8))
    assert any(one.name == "accel::block_attention" for one in found.operations)


def test_what_a_cache_does_lies_in_the_blocks_and_has_a_name(wan, tmp_path):
    hooks = {name: vars(module).get("_compiled_call_impl") for name, module in wan.transformer.named_modules()}
    with accel.enable(wan, cache="delta"):
        found = profiled(wan, run(wan, steps=4), tmp_path / "trace.json")
    assert {name: vars(module).get("_compiled_call_impl") for name, module in wan.transformer.named_modules()} == hooks
    events = [one for one in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if "dur" in one]

    def spans(*names):
        return [(one["ts"], one["ts"] + one["dur"]) for one in events if one["name"].startswith(names)]

    for ranges in ("accel.block ", "accel.cache delta"):
        around = spans(ranges)
        for begin, end in spans("accel::apply_delta", "accel::compute_delta"):
            assert any(first <= begin and end <= last for first, last in around), ranges
    assert len(spans("accel::apply_delta")) > 0
    assert 0 < found.caches["delta"] < sum(found.blocks) <= found.parts["denoiser"]
    deltas = {one.name: one for one in found.operations if one.name.endswith("_delta")}
    assert set(deltas) == {"accel::apply_delta", "accel::compute_delta"}
    assert all(one.moved > 0 and one.flops is None and one.whole_seconds >= one.seconds for one in deltas.values())
    assert profiled(wan, run(wan, steps=1)).caches == {}


def test_ceilings_are_measured_once_and_kept(tmp_path, monkeypatch):
    import accel.measure.ceilings as module

    monkeypatch.setattr(module, "_SIDE", {True: 32})
    monkeypatch.setattr(module, "_COPIED", {True: 4096})
    cpu = torch.device("cpu")
    first = ceilings(cpu, torch.float32, folder=tmp_path)
    assert first.flops > 0 and first.bandwidth > 0
    assert ceilings(cpu, torch.float32, folder=tmp_path) == first
    ceilings(cpu, torch.float64, folder=tmp_path)
    assert len(json.loads((tmp_path / "ceilings.json").read_text())) == 2
    (tmp_path / "ceilings.json").write_text("{half")
    assert ceilings(cpu, torch.float32, folder=tmp_path).flops > 0


def test_the_ideal_time_is_the_longer_of_two():
    assert LIMITS.ideal_seconds(1e12, 1e9) == 1.0
    assert LIMITS.ideal_seconds(1e9, 1e11) == 1.0


def test_charts_are_drawn_of_few_and_of_many_layers(wan):
    found = profiled(wan, run(wan))
    for layers in (found.layers, found.layers * 20):
        assert roofline(layers, LIMITS).startswith(b"\x89PNG")
        assert waterline(layers, LIMITS).startswith(b"\x89PNG")
