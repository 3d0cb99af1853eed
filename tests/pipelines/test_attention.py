"""Processors that stand in for those of diffusers: the same bits, everything handed over, no trace behind."""

from __future__ import annotations

import copy
import inspect
import pickle
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ParallelConfig
from torch import Tensor

from accel.errors import AccelError
from accel.pipelines.attention import Attend, AttentionCall, processor_for, serve, served
from accel.pipelines.attention.call import dense
from accel.pipelines.attention.finding import _FORMS
from accel.pipelines.attention.serving import _SERVING
from accel.pipelines.sites import BlockSite, inspect_pipeline
from tests.conformance.cases import FAMILIES
from tests.conformance.snapshot import assert_copies, snapshot
from tests.stand_ins import FORMS, Spy, attention, built, serving_blocks, short, standing_in
from tests.tiny_pipelines import TINY

# Of the linear attention of Sana there is nothing to take over.
NAMES = sorted(FAMILIES.keys() - {"wan_unipc", "sana"})


def attention_inputs(name: str) -> dict[str, tuple[tuple, dict[str, Any]]]:
    """Path of every attention module, and the arguments of its last call in a run."""
    case, (pipe, _) = TINY[name], built(name)
    found: dict[str, tuple[tuple, dict[str, Any]]] = {}
    handles = []
    for site in attention(pipe):

        def note(module: Any, args: tuple, kwargs: dict, name: str = f"{site.denoiser}.{site.path}") -> None:
            found[name] = args, kwargs

        handles.append(site.module.register_forward_pre_hook(note, with_kwargs=True))
    case.run(pipe, num_inference_steps=4 if len(case.forwards) > 1 else 1)
    for handle in handles:
        handle.remove()
    return found


def converted(value: Any, dtype: torch.dtype) -> Any:
    """The hidden states in the dtype; tables of rotation stay float32, as models have them."""
    if isinstance(value, dict):
        return {key: converted(part, dtype) for key, part in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def parts(output: Any) -> list[Tensor]:
    return [part for part in (output if isinstance(output, tuple) else (output,)) if part is not None]


@pytest.mark.parametrize("name", NAMES)
def test_every_site_gives_the_bits_of_diffusers(name: str) -> None:
    pipe, _ = built(name)
    inputs = attention_inputs(name)
    sites = attention(pipe)
    assert len(inputs) == len(sites)
    for site in sites:
        args, kwargs = inputs[f"{site.denoiser}.{site.path}"]
        for dtype in (torch.float32, torch.bfloat16):
            module = copy.deepcopy(site.module).to(dtype)
            args = tuple(converted(value, dtype) for value in args)
            kwargs = {key: converted(value, dtype) for key, value in kwargs.items()}
            with torch.no_grad():
                expected = parts(module(*args, **kwargs))
                spy = Spy()
                module.processor = type(processor_for(site))(module.processor, spy)
                output = parts(module(*args, **kwargs))
            assert len(spy.calls) == 1
            assert len(output) == len(expected)
            for mine, theirs in zip(output, expected, strict=True):
                assert mine.dtype == dtype
                assert torch.equal(mine, theirs), f"{site.path} in {dtype}"


@pytest.mark.parametrize("name", NAMES)
def test_whole_runs_give_the_bits_of_diffusers_and_leave_no_trace(name: str) -> None:
    pipe, plain = built(name)
    before = snapshot(pipe)
    spy = Spy()
    with standing_in(pipe, spy):
        assert snapshot(pipe) != before
        assert torch.equal(short(TINY[name], pipe), plain)
    case = TINY[name]
    calls = len(spy.calls)
    assert calls == 2 * sum(case.forwards.values()) // 8 * len(attention(pipe)) // len(case.forwards)
    assert snapshot(pipe) == before
    assert torch.equal(short(case, pipe), plain)
    assert len(spy.calls) == calls


def test_only_self_and_joint_attentions_are_found() -> None:
    sites = attention(built("wan22")[0])
    assert [(s.denoiser, s.path) for s in sites] == [
        (part, f"blocks.{n}.attn1") for part in ("transformer", "transformer_2") for n in range(4)
    ]
    assert all(site.module is site.block.module.attn1 and site.fact.kind == "self" for site in sites)
    single = attention(built("flux")[0])[-1]
    assert (single.path, single.block.index) == ("single_transformer_blocks.2.attn", 5)


@pytest.mark.parametrize("name", FORMS)
def test_attend_is_told_what_the_call_shows(name: str) -> None:
    case, (pipe, plain) = TINY[name], built(name)
    noted: list[tuple[int, AttentionCall, tuple[int, ...]]] = []

    def attend(site: BlockSite) -> Attend:
        def noting(query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
            noted.append((site.index, call, tuple(query.shape)))
            return call.dense(query, key, value)

        return noting

    with serving_blocks(pipe, attend):
        assert torch.equal(short(case, pipe), plain)
    blocks = sum(len(denoiser.blocks) for denoiser in inspect_pipeline(pipe).denoisers)
    assert [index for index, _, _ in noted[:blocks]] == list(range(blocks))
    facts = inspect_pipeline(pipe)
    batch = 2 if facts.guidance.form == "batched" else 1
    text = facts.family.text if case.text_tokens else "none"
    (dispatched,) = {fact.dispatched for site in facts.denoisers[0].blocks for fact in site.attention}
    for place, (layer, call, shape) in enumerate(noted):
        behind = case.tokens if layer >= blocks - case.decoding else case.text_tokens
        assert shape == (batch, case.tokens + behind, 2, 64)
        scale = 0.125 if name == "lumina2" else None
        assert (call.text, call.text_length, call.scale) == (text, behind, scale)
        assert (call.dispatched, call.layer) == (dispatched, layer)
        assert (call.text_mask is not None) == (name in ("hunyuan_video15", "mochi"))
        if call.text_mask is not None:
            assert call.text_mask.shape == (batch, case.text_tokens) and not call.text_mask.all()
            assert call.text_mask is noted[place // blocks * blocks][1].text_mask, (
                "so that it is asked once for all blocks"
            )
        if name in ("hunyuan_video", "motif_video") and behind == case.text_tokens:
            assert call.mask is not None
            assert (call.mask.dtype, call.mask.shape) == (torch.bool, (1, 1, 1, case.tokens + case.text_tokens))
            assert not call.mask.all()
        else:
            assert call.mask is None


def test_a_single_block_of_flux_does_not_tell_its_text() -> None:
    spy = Spy()
    pipe, _ = built("flux")
    with standing_in(pipe, spy):
        short(TINY["flux"], pipe, num_inference_steps=1)
    assert [call.text_length for call in spy.calls] == [24] * 3 + [None] * 3


def test_a_second_attention_of_a_block_has_a_number_of_its_own() -> None:
    """Stable Diffusion 3.5 attends to the image alone beside the joint attention of its first blocks."""
    case, (pipe, _) = TINY["sd35"], built("sd35")
    spy = Spy()
    with standing_in(pipe, spy):
        short(case, pipe, num_inference_steps=1)
    both = (case.text_tokens, 0)
    assert [call.text_length for call in spy.calls] == [*both, *both, case.text_tokens, case.text_tokens]
    assert [call.layer for call in spy.calls] == [0, 4, 1, 5, 2, 3]
    assert [site.layer for site in attention(pipe)] == [0, 4, 1, 5, 2, 3]


def test_what_attend_returns_is_what_the_block_gets() -> None:
    pipe, plain = built("wan")

    def halved(query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        return call.dense(query, key, value) * 0.5

    with standing_in(pipe, halved):
        changed = short(TINY["wan"], pipe)
    assert not torch.equal(changed, plain)
    with standing_in(pipe):
        assert torch.equal(short(TINY["wan"], pipe), plain), "outside of serve it is diffusers' attention"


def test_serve_ends_with_its_block_also_by_an_exception() -> None:
    spy, inner = Spy(), Spy()
    call = AttentionCall("none", None, None, dispatched=False)
    x = torch.randn(1, 8, 2, 8)
    with serve(spy, 3):
        with pytest.raises(KeyboardInterrupt), serve(inner, 5):
            served(x, x, x, call)
            raise KeyboardInterrupt
        served(x, x, x, call)
    served(x, x, x, call)
    assert [c.text_length for c in spy.calls + inner.calls] == [3, 5]
    assert _SERVING.get() is None


@pytest.mark.parametrize("path", sorted(_FORMS))
def test_parameters_are_those_of_the_original(path: str) -> None:
    """Attention modules drop the keyword arguments that the class of their processor does not name."""
    mine = inspect.signature(_FORMS[path].__call__).parameters.values()
    theirs = inspect.signature(resolve_name(path).__call__).parameters.values()
    shape = [(p.name, p.kind, p.default is p.empty) for p in theirs]
    # A default of None where the original has none is no difference to who calls by name.
    assert [(p.name, p.kind) for p in mine] == [(name, kind) for name, kind, _ in shape]
    assert [p.default is p.empty for p in mine] == [bare for _, _, bare in shape]


def test_processors_without_a_backend_get_none() -> None:
    for name in ("cogvideox", "cosmos2_v2w", "dit", "sd3_heun"):
        processor = processor_for(attention(built(name)[0])[0])
        assert not hasattr(processor, "_attention_backend")
        assert not hasattr(processor, "_parallel_config")
    processor = processor_for(attention(built("wan")[0])[0])
    processor._parallel_config = "tensor parallel"
    assert processor.call(None, 0).parallel == "tensor parallel"
    assert vars(processor.original).pop("_parallel_config") == "tensor parallel"


@pytest.mark.parametrize(
    ("degrees", "reason"),
    [
        ({"ring_degree": 2}, "ring attention shows no process all of them"),
        ({"ring_degree": 2, "ulysses_degree": 2}, "ring attention shows no process all of them"),
        ({"ulysses_degree": 4}, "its 2 heads are not a multiple of ulysses_degree=4"),
    ],
)
def test_context_parallelism_that_cannot_bring_tokens_together_is_refused(degrees: Any, reason: str) -> None:
    pipe: Any = TINY["wan"].build()
    parallel = ParallelConfig(context_parallel_config=ContextParallelConfig(**degrees))
    pipe.transformer.blocks[1].attn1.processor._parallel_config = parallel
    place = r"transformer\.blocks\.1\.attn1 has its tokens spread over devices by context parallelism"
    with pytest.raises(AccelError, match=rf"{place}, and attention methods need all of them: {reason}"):
        attention(pipe)


def test_an_unknown_processor_is_refused_in_one_line() -> None:
    pipe: Any = TINY["wan"].build()
    module = pipe.transformer.blocks[2].attn1
    own = module.processor

    class Mine(type(own)):  # type: ignore[misc]
        pass

    module.set_processor(Mine())
    with pytest.raises(AccelError) as refused:
        attention(pipe)
    assert str(refused.value) == (
        "transformer.blocks.2.attn1 has the processor Mine, whose attention Accel cannot take over; it takes over "
        "WanAttnProcessor: give it back, with "
        "pipe.transformer.get_submodule('blocks.2.attn1').set_processor(WanAttnProcessor())"
    )
    pipe.transformer.get_submodule("blocks.2.attn1").set_processor(type(own)())
    with standing_in(pipe), pytest.raises(AccelError, match="has the processor WanSelfAttention"):
        attention(pipe)
    transformer = TINY["dit"].build().transformer
    transformer.transformer_blocks[0].attn1.group_norm = torch.nn.GroupNorm(1, 128)
    module = built("dit")[0]
    site = attention(module)[0]
    assert type(processor_for(site)).refusal(transformer.transformer_blocks[0].attn1) is not None


@pytest.mark.parametrize("name", [*FORMS, "anyflow_far"])
def test_copies_and_pickles_have_the_original(name: str) -> None:
    pipe, plain = built(name)
    with standing_in(pipe, lambda *_: pytest.fail("a copy must not come here")) as processors:
        assert_copies(pipe.transformer)
        transformer = copy.deepcopy(pipe.transformer)
        for twin in (copy.copy(processors[0]), copy.deepcopy(processors[0]), pickle.loads(pickle.dumps(processors[0]))):
            assert type(twin) is type(processors[0].original)
    own = pipe.transformer
    pipe.transformer = transformer
    try:
        assert torch.equal(short(TINY[name], pipe), plain)
    finally:
        pipe.transformer = own


def test_a_call_that_attends_to_other_tokens_is_left_to_the_original() -> None:
    spy = Spy()
    for name in ("wan", "dit"):
        site = attention(built(name)[0])[0]
        module = copy.deepcopy(site.module)
        hidden, other = torch.randn(1, 20, 128), torch.randn(1, 7, 128)
        with torch.no_grad():
            expected = module(hidden, encoder_hidden_states=other)
            module.processor = type(processor_for(site))(module.processor, spy)
            assert torch.equal(module(hidden, encoder_hidden_states=other), expected)
    assert not spy.calls


def test_a_masked_self_attention_hands_over_its_mask() -> None:
    for name in ("wan", "dit", "cogvideox"):
        site = attention(built(name)[0])[0]
        module = copy.deepcopy(site.module)
        hidden, text = torch.randn(2, 20, 128), torch.randn(2, 4, 128)
        length = 24 if name == "cogvideox" else 20
        mask = torch.zeros(2, 1, length)
        mask[:, :, -3:] = -1e4
        given: dict[str, Any] = {"attention_mask": mask[:, None] if name == "wan" else mask}
        if name == "cogvideox":
            given["encoder_hidden_states"] = text
        with torch.no_grad():
            expected = parts(module(hidden, **given))
            spy = Spy()
            module.processor = type(processor_for(site))(module.processor, spy)
            output = parts(module(hidden, **given))
        assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))
        assert spy.calls[0].mask is not None
        assert spy.calls[0].mask.shape[-1] == length


def test_dense_is_an_attend() -> None:
    pipe, plain = built("dit")
    with standing_in(pipe, dense):
        assert torch.equal(short(TINY["dit"], pipe), plain)
