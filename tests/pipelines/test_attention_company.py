"""Stand-ins beside what else people do to a model: compiling, backends, LoRA, fusing, training, IP-adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxIPAdapterAttnProcessor
from torch import Tensor

from accel.errors import AccelError
from accel.pipelines.attention import Attend, AttentionCall, processor_for
from accel.pipelines.sites import BlockSite, inspect_pipeline
from tests.stand_ins import FORMS, Spy, attention, built, serving_blocks, short, standing_in
from tests.tiny_pipelines import TINY, add_lora


def compile_blocks(pipe: Any) -> None:
    if pipe.transformer._repeated_blocks:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    else:
        for site in inspect_pipeline(pipe).denoisers[0].blocks:
            site.module.compile(fullgraph=True, backend="eager")


# Mochi's own attention asks each sample for its length, HiDream's experts for their tokens: no one graph holds that.
@pytest.mark.parametrize("name", [name for name in FORMS if name not in ("hidream", "mochi")])
def test_compiled_blocks_stay_one_graph_for_all_sites(name: str) -> None:
    case = TINY[name]
    pipe: Any = case.build()
    plain = short(case, pipe, num_inference_steps=1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    stats = torch._dynamo.utils.counters["stats"]
    compile_blocks(pipe)
    short(case, pipe, num_inference_steps=1)
    of_diffusers = stats["unique_graphs"]
    indices: list[int] = []
    text: set[int | None] = set()

    def attend(site: BlockSite) -> Attend:
        def noting(query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
            indices.append(site.index)
            text.add(call.text_length)
            return call.dense(query, key, value)

        return noting

    def run() -> None:
        indices.clear()
        with serving_blocks(pipe, attend):
            torch.testing.assert_close(short(case, pipe, num_inference_steps=1), plain, rtol=1e-4, atol=1e-4)
        blocks = len(inspect_pipeline(pipe).denoisers[0].blocks)
        # Some pipelines cannot do with one step.
        assert indices == list(range(blocks)) * (case.forwards["transformer"] // 8 * case.fewest_steps)
        assert text == case.text_lengths

    run()
    ours = stats["unique_graphs"] - of_diffusers
    assert 1 <= ours <= of_diffusers
    # Enabled and disabled again and again, nothing is compiled anew.
    run()
    short(case, pipe, num_inference_steps=1)
    assert stats["unique_graphs"] == of_diffusers + ours
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_compiled_graph_takes_other_lengths_of_text() -> None:
    site = attention(built("flux")[0])[0]
    module = copy.deepcopy(site.module)
    found: list[int | None] = []

    def noting(query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        found.append(call.text_length)
        return call.dense(query, key, value)

    stand_in = type(processor_for(site))(module.processor, noting)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for image, text in ((30, 7), (30, 9), (42, 8)):
        inputs = torch.randn(1, image, 128), torch.randn(1, text, 128)
        with torch.no_grad():
            module.processor = stand_in.original
            expected = module(*inputs)
            module.processor = stand_in
            for mine, theirs in zip(compiled(*inputs), expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert found == [7, 9, 8]
    assert {type(length) for length in found} == {int}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.fixture
def active_backend() -> Iterator[None]:
    """`set_attention_backend` changes a setting of the whole process; it is put back."""
    before = _AttentionBackendRegistry.get_active_backend()[0]
    yield
    _AttentionBackendRegistry.set_active_backend(before)


@pytest.mark.usefixtures("active_backend")
@pytest.mark.parametrize("when", ["before", "while in place"])
@pytest.mark.parametrize("name", ["flux", "hunyuan_video", "wan"])
def test_the_users_backend_is_obeyed(name: str, when: str) -> None:
    case = TINY[name]
    pipe: Any = case.build()
    originals = [site.module.processor for site in attention(pipe)]
    spy = Spy()
    if when == "before":
        pipe.transformer.set_attention_backend("_native_math")
    with standing_in(pipe, spy):
        if when != "before":
            pipe.transformer.set_attention_backend("_native_math")
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
        output = short(case, pipe, num_inference_steps=1)
    assert {call.backend for call in spy.calls} == {AttentionBackendName._NATIVE_MATH}
    assert torch.equal(short(case, pipe, num_inference_steps=1), output)
    assert {vars(original)["_attention_backend"] for original in originals} == {AttentionBackendName._NATIVE_MATH}
    pipe.transformer.reset_attention_backend()
    assert not torch.equal(short(case, pipe, num_inference_steps=1), output), "the backends' bits differ"


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_lora_and_fused_projections(name: str) -> None:
    case = TINY[name]
    pipe: Any = case.build()
    plain = short(case, pipe)
    pipe.transformer.fuse_qkv_projections()
    fused = short(case, pipe)
    with standing_in(pipe, spy := Spy()):
        assert torch.equal(short(case, pipe), fused)
    assert spy.calls
    pipe.transformer.unfuse_qkv_projections()
    with standing_in(pipe):
        add_lora(pipe)
        accelerated = short(case, pipe)
    assert torch.equal(short(case, pipe), accelerated)
    assert not torch.equal(accelerated, plain)
    with standing_in(pipe):
        assert torch.equal(short(case, pipe), accelerated)
        pipe.transformer.unload_lora()
        assert torch.equal(short(case, pipe), plain)


@pytest.mark.parametrize(("name", "forwards"), [("cogvideox", 2), ("sd3_heun", 3)])
def test_processors_for_fused_projections(name: str, forwards: int) -> None:
    case = TINY[name]
    pipe: Any = case.build()
    pipe.transformer.fuse_qkv_projections()
    fused = short(case, pipe)
    with standing_in(pipe, spy := Spy()):
        assert torch.equal(short(case, pipe), fused)
    assert len(spy.calls) == 4 * forwards


def test_a_stand_in_that_somebody_kept_computes_as_the_original_afterwards() -> None:
    """CogVideoX keeps the processors that it had before fusing, and puts them back after the stand-ins have gone."""
    case = TINY["cogvideox"]
    pipe: Any = case.build()
    plain = short(case, pipe)
    with standing_in(pipe, spy := Spy()):
        pipe.transformer.fuse_qkv_projections()
    fused = {type(site.module.processor).__name__ for site in attention(pipe)}
    assert fused == {"FusedCogVideoXAttnProcessor2_0"}, "what the user put there since stays"
    pipe.transformer.unfuse_qkv_projections()
    assert torch.equal(short(case, pipe), plain)
    assert not spy.calls


@pytest.mark.parametrize("name", ["cogvideox", "flux", "hunyuan_video", "wan"])
def test_gradients_and_checkpointing(name: str) -> None:
    pipe: Any = TINY[name].build()
    inputs: list[tuple[tuple, dict[str, Any]]] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True
    )
    short(TINY[name], pipe, num_inference_steps=1)
    handle.remove()
    args, kwargs = inputs[0]
    pipe.transformer.enable_gradient_checkpointing()
    pipe.transformer.train()

    def gradients() -> list[Tensor]:
        pipe.transformer.zero_grad()
        pipe.transformer(*args, **kwargs)[0].square().mean().backward()
        return [p.grad.clone() for p in pipe.transformer.parameters() if p.grad is not None]

    expected = gradients()
    with standing_in(pipe, spy := Spy()):
        found = gradients()
    assert len(spy.calls) == 2 * len(attention(pipe)), "once forwards, once again backwards"
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_ip_adapters_are_refused_and_find_plain_processors() -> None:
    pipe: Any = TINY["flux"].build()
    plain = short(TINY["flux"], pipe, num_inference_steps=1)
    with standing_in(pipe, spy := Spy()) as processors:
        # What loading an IP-adapter does to the modules that it does not take.
        fresh = type(processors[-1])()
        assert type(fresh) is FluxAttnProcessor
        attention_module = pipe.transformer.single_transformer_blocks[2].attn
        attention_module.set_processor(fresh)
    assert attention_module.processor is fresh
    assert torch.equal(short(TINY["flux"], pipe, num_inference_steps=1), plain)
    assert not spy.calls
    adapter = FluxIPAdapterAttnProcessor(hidden_size=128, cross_attention_dim=32)
    pipe.transformer.transformer_blocks[1].attn.set_processor(adapter)
    message = (
        r"^transformer\.transformer_blocks\.1\.attn has the processor FluxIPAdapterAttnProcessor.*unload_ip_adapter"
    )
    with pytest.raises(AccelError, match=message):
        attention(pipe)
