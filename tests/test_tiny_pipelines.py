"""The tiny pipelines are what conformance tests believe them to be: lively, reproducible, large enough."""

import inspect
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from accel.pipelines.attention import AttentionCall
from tests.stand_ins import standing_in
from tests.tiny_pipelines import TINY, TinyCase, add_lora, save_locally

DENOISERS = ("transformer", "transformer_2")
BlockKey = tuple[str, str, int]


def change(new: torch.Tensor, old: torch.Tensor) -> float:
    """Relative size of a change, ||new - old|| / ||old||."""
    return ((new - old).norm() / old.norm()).item()


@dataclass
class BlockCall:
    """What one block did in one call, on the image or video stream and, where it has one, on the text."""

    before: torch.Tensor
    after: torch.Tensor
    text_change: float | None
    text_tokens: int

    @property
    def delta(self) -> torch.Tensor:
        return self.after - self.before


@dataclass
class Trial:
    """One case, built and run twice with equal arguments, the first time watched."""

    case: TinyCase
    pipe: Any
    outputs: list[torch.Tensor] = field(default_factory=list)
    forwards: Counter[str] = field(default_factory=Counter)
    blocks: dict[BlockKey, list[BlockCall]] = field(default_factory=lambda: defaultdict(list))
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the last call of a denoiser."""


def head_size_and_heads(config: Any) -> tuple[int, int]:
    """Under the names that families have for them."""
    heads = config.get("num_attention_heads") or config["n_heads"]
    width = config.get("hidden_size") or config.get("dim")
    return (width // heads if width else config["attention_head_dim"]), heads


def bound(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments


def stream(output: Any, like: torch.Tensor | None) -> torch.Tensor | None:
    """The stream among a block's outputs that continues the input `like`, known by its shape."""
    outputs = output if isinstance(output, tuple) else (output,)
    same = (out for out in outputs if out is not None and like is not None and out.shape == like.shape)
    return next(same, None)


@contextmanager
def watched(trial: Trial) -> Iterator[None]:
    """Record the calls of every denoiser and of every block in its stacks."""
    handles = []

    def denoiser_hook(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            trial.forwards[name] += 1
            trial.arguments = bound(module, args, kwargs)

        return hook

    def block_hook(key: BlockKey) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            inputs = bound(module, args, kwargs)
            before, text = inputs.get("hidden_states", inputs.get("x")), inputs.get("encoder_hidden_states")
            # Where a decoder's text is as long as the video, it comes last.
            last = output[::-1] if isinstance(output, tuple) else ()
            after, text_after = stream(output, before), stream(last, text)
            assert after is not None
            text_change = None if text is None or text_after is None else change(text_after, text)
            text_tokens = 0 if text is None else text.shape[1]
            trial.blocks[key].append(BlockCall(before.clone(), after.clone(), text_change, text_tokens))

        return hook

    for name in DENOISERS:
        denoiser = getattr(trial.pipe, name, None)
        if denoiser is None:
            continue
        handles.append(denoiser.register_forward_pre_hook(denoiser_hook(name), with_kwargs=True))
        for stack in trial.case.stacks:
            for index, block in enumerate(getattr(denoiser, stack)):
                handles.append(block.register_forward_hook(block_hook((name, stack, index)), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module", params=list(TINY.values()), ids=list(TINY))
def trial(request: pytest.FixtureRequest) -> Trial:
    case: TinyCase = request.param
    trial = Trial(case, case.build())
    with watched(trial):
        trial.outputs.append(case.run(trial.pipe))
    trial.outputs.append(case.run(trial.pipe))
    return trial


def test_output_is_finite_and_repeats(trial: Trial) -> None:
    first, second = trial.outputs
    assert first.dtype == torch.float32 and first.isfinite().all()
    assert 0.05 < first.std() < 5
    assert ((first == 0) | (first == 1)).float().mean() < 0.01  # pixels that are clamped would hide differences
    assert torch.equal(first, second)


def test_is_large_enough_and_calls_as_stated(trial: Trial) -> None:
    case = trial.case
    assert case.tokens >= 512
    found = {(key[1], call.before.shape[1]) for key, calls in trial.blocks.items() for call in calls}
    text = dict.fromkeys(case.joined, case.text_tokens)
    assert {length - text.get(stack, 0) for stack, length in found} == case.lengths
    assert trial.forwards == case.forwards
    for name in case.forwards:
        denoiser = getattr(trial.pipe, name)
        blocks = sum(len(getattr(denoiser, stack)) for stack in case.stacks)
        assert blocks >= 4 and blocks == sum(key[0] == name for key in trial.blocks)
        assert head_size_and_heads(denoiser.config) == (64, 2)
        assert not denoiser.training
        assert all(len(trial.blocks[key]) == case.forwards[name] for key in trial.blocks if key[0] == name)


def test_text_tokens_are_as_stated(trial: Trial) -> None:
    """A stream of text that the blocks return is the text in one sequence with the image or video."""
    lengths = {call.text_tokens for calls in trial.blocks.values() for call in calls if call.text_change is not None}
    apart = trial.case.text_tokens > 0 and trial.case.joined != trial.case.stacks
    assert lengths == (trial.case.text_lengths if apart else set())


def test_every_block_acts(trial: Trial) -> None:
    for key, calls in trial.blocks.items():
        changes = [change(call.after, call.before) for call in calls]
        assert min(changes) > 0.01 and max(changes) < 2, (key, min(changes), max(changes))
        text_changes = [call.text_change for call in calls if call.text_change is not None]
        block = getattr(getattr(trial.pipe, key[0]), key[1])[key[2]]
        if getattr(block, "context_pre_only", False):
            assert set(text_changes) <= {0.0}, "the last block of Mochi or SD3 only reads the text"
            continue
        assert all(0.01 < text_change < 2 for text_change in text_changes), (key, text_changes)


def test_neighbouring_steps_are_alike_but_not_the_same(trial: Trial) -> None:
    """What a block adds changes a little from step to step: a cache has something to gain and to lose."""
    # Guidance calls, of which only the first of a step is looked at.
    per_step = sum(trial.case.forwards.values()) // trial.case.steps
    for key, calls in trial.blocks.items():
        steps = calls if not trial.case.chunks else calls[: trial.case.steps // len(trial.case.chunks)]
        deltas = [call.delta for call in steps[::per_step]]
        changes = [change(new, old) for old, new in pairwise(deltas)]
        assert min(changes) > 0.001 and max(changes) < 0.7, (key, changes)


def test_prompt_and_guidance_matter(trial: Trial) -> None:
    case, once = trial.case, {"num_inference_steps": 1}
    plain = case.run(trial.pipe, **once)
    other = {"class_labels": [9]} if case.name == "dit" else {"prompt": "two green hills"}
    assert change(case.run(trial.pipe, **once, **other), plain) > 0.01
    guidance = "true_cfg_scale" if "true_cfg_scale" in case.call else "guidance_scale"
    assert change(case.run(trial.pipe, **once, **{guidance: 1.5}), plain) > 0.01
    assert change(case.run(trial.pipe, **once, seed=1), plain) > 0.01


class UniformAttention(TorchFunctionMode):
    """Gives every query of a long sequence the plain mean of the values that its mask lets it see."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = dict(kwargs or {})
        if func is scaled_dot_product_attention:
            call.update(zip(("query", "key", "value", "attn_mask"), args, strict=False))
            args = ()
            if min(call["query"].shape[-2], call["key"].shape[-2]) >= 512:
                call["query"] = torch.zeros_like(call["query"])
        return func(*args, **call)


def uniformly(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: AttentionCall) -> torch.Tensor:
    return call.dense(torch.zeros_like(query), key, value)


def test_attention_is_far_from_uniform(trial: Trial) -> None:
    """What each token attends to is visible in the output, so an attention that picks wrongly is seen."""
    if trial.case.name == "sana":
        pytest.skip("a linear attention has no weights that a softmax would make")
    plain = trial.case.run(trial.pipe, num_inference_steps=2)
    # Of flex attention a mode of functions sees nothing.
    flex = trial.case.name == "anyflow_far"
    with standing_in(trial.pipe, uniformly) if flex else UniformAttention():
        uniform = trial.case.run(trial.pipe, num_inference_steps=2)
    assert change(uniform, plain) > 0.02


def test_frames_decode(trial: Trial) -> None:
    call = trial.case.call
    pixels = trial.case.run(trial.pipe, num_inference_steps=1, output_type="np")
    frames = [call.get("num_frames", 5)] if {"num_frames", "video"} & set(call) else []
    assert pixels.shape == (1, *frames, call.get("height", 48), call.get("width", 48), 3)
    assert pixels.isfinite().all() and pixels.std() > 0.01


@pytest.mark.parametrize("name", TINY)
def test_building_is_reproducible_and_leaves_the_random_state(name: str) -> None:
    before = torch.get_rng_state(), str(numpy.random.get_state()), random.getstate()
    first, second = TINY[name].build(), TINY[name].build(seed=0)
    after = torch.get_rng_state(), str(numpy.random.get_state()), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    other = TINY[name].build(seed=1)
    for component, module in first.components.items():
        if isinstance(module, torch.nn.Module):
            state, same = module.state_dict(), second.components[component].state_dict()
            assert all(torch.equal(state[key], same[key]) for key in state)
            different = other.components[component].state_dict()
            assert any(not torch.equal(state[key], different[key]) for key in state)


@pytest.mark.parametrize(
    ("name", "stack", "added_after"),
    [
        ("wan_vace", "blocks", {0, 2}),
        ("flux_controlnet", "transformer_blocks", {0, 1}),
        ("flux_controlnet", "single_transformer_blocks", {0, 1}),
        ("flux", "transformer_blocks", set()),
    ],
)
def test_parent_adds_between_blocks(name: str, stack: str, added_after: set[int]) -> None:
    trial = Trial(TINY[name], TINY[name].build())
    with watched(trial):
        trial.case.run(trial.pipe, num_inference_steps=1)
    calls = [calls[0] for key, calls in sorted(trial.blocks.items()) if key[1] == stack]
    between = {index: change(calls[index + 1].before, calls[index].after) for index in range(len(calls) - 1)}
    assert {index for index, added in between.items() if added > 0} == added_after
    assert all(0.01 < between[index] < 2 for index in added_after), between


def test_hunyuan_key_mask_matters() -> None:
    trial = Trial(TINY["hunyuan_video"], TINY["hunyuan_video"].build())
    with watched(trial):
        trial.case.run(trial.pipe, num_inference_steps=1)
    mask = trial.arguments["encoder_attention_mask"]
    assert mask.shape == (1, 64) and 2 <= mask.sum() <= 32
    with torch.no_grad():
        masked = trial.pipe.transformer(**trial.arguments)[0]
        arguments = {**trial.arguments, "encoder_attention_mask": torch.ones_like(mask)}
        unmasked = trial.pipe.transformer(**arguments)[0]
    assert change(unmasked, masked) > 0.01


@pytest.mark.parametrize("name", ["wan", "flux", "cogvideox"])
def test_saves_and_reloads_with_equal_bits(name: str, tmp_path: Any) -> None:
    case = TINY[name]
    pipe = case.build()
    loaded = save_locally(pipe, tmp_path)
    assert type(loaded) is type(pipe)
    assert torch.equal(case.run(loaded), case.run(pipe))


@pytest.mark.parametrize("name", ["wan", "wan22", "flux"])
def test_lora_acts_and_comes_out_again(name: str) -> None:
    case = TINY[name]
    pipe = case.build()
    plain = case.run(pipe, num_inference_steps=2)
    add_lora(pipe)
    adapted = case.run(pipe, num_inference_steps=2)
    assert 0.01 < change(adapted, plain) < 2
    for denoiser in case.forwards:
        getattr(pipe, denoiser).unload_lora()
    assert torch.equal(case.run(pipe, num_inference_steps=2), plain)
