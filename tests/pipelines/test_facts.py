"""The facts of each family against the real modules of diffusers."""

from __future__ import annotations

import importlib
import inspect
from functools import cache

import diffusers
import pytest
import torch

from accel.errors import AccelError
from accel.methods.layer_choice import matches
from accel.pipelines.facts import Family
from accel.pipelines.families import families
from accel.pipelines.sites import BlockSite, Denoiser, PipelineFacts, inspect_pipeline
from tests.conformance.cases import FAMILIES
from tests.tiny_pipelines import KIN, TINY


@cache
def _built() -> list[PipelineFacts]:
    return [inspect_pipeline(case.build()) for case in FAMILIES.values()]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_blocks_and_attention_sites_are_where_the_facts_say(name: str) -> None:
    case = FAMILIES[name]
    facts = inspect_pipeline(case.build())
    assert {denoiser.name for denoiser in facts.denoisers} == set(case.forwards)
    for denoiser in facts.denoisers:
        stacks = [getattr(denoiser.module, stack) for stack in case.stacks]
        assert [site.module for site in denoiser.blocks] == [block for stack in stacks for block in stack]
        assert [site.index for site in denoiser.blocks] == list(range(len(denoiser.blocks)))
        for site in denoiser.blocks:
            assert denoiser.module.get_submodule(site.path) is site.module
            found = {
                path: type(module.processor).__name__
                for path, module in site.module.named_modules()
                if hasattr(module, "processor")
            }
            assert found == {attention.path: attention.processor for attention in site.attention}
            for attention in site.attention:
                assert attention.mask is None or attention.mask in site.parameters


def test_blocks_beside_the_main_path_know_next_to_which_block_they_run() -> None:
    (denoiser,) = inspect_pipeline(FAMILIES["wan_vace"].build()).denoisers
    assert [(s.path, s.index, s.depth) for s in denoiser.beside] == [("vace_blocks.0", 4, 0), ("vace_blocks.1", 5, 2)]
    assert [(s.index, s.depth) for s in denoiser.blocks] == [(n, n) for n in range(4)]
    assert not inspect_pipeline(FAMILIES["wan"].build()).denoisers[0].beside


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_attention_sites_call_what_the_facts_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatched sites go through diffusers' dispatcher, the others straight to scaled_dot_product_attention.

    And more than a timestep for each sample is given to no denoiser whose facts do not say so.
    """
    case = FAMILIES[name]
    pipe = case.build()
    facts = inspect_pipeline(pipe)
    expected = {a.dispatched for site in facts.denoisers[0].blocks for a in site.attention}
    first = facts.denoisers[0].blocks[0]
    processor = first.module.get_submodule(first.attention[0].path).processor
    module = importlib.import_module(type(processor).__module__)
    original = getattr(module, "dispatch_attention_fn", None)
    dispatched = 0

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal dispatched
        dispatched += 1
        assert original is not None
        return original(*args, **kwargs)

    if original is not None:
        monkeypatch.setattr(module, "dispatch_attention_fn", counting)
    ranks: set[int] = set()
    for denoiser in facts.denoisers:

        def watch(module: object, args: tuple, kwargs: dict, denoiser: Denoiser = denoiser) -> None:
            ranks.add(torch.as_tensor(denoiser.argument("timestep", args, kwargs)).ndim)

        denoiser.module.register_forward_pre_hook(watch, with_kwargs=True)
    case.run(pipe, num_inference_steps=2)
    assert expected == {dispatched > 0}
    assert facts.family.per_token_timesteps or max(ranks) <= 1


@pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)
def test_names_exist_in_diffusers(family: Family) -> None:
    for name in (*family.pipelines, *family.transformers):
        assert hasattr(diffusers, name)
    for guidance in family.pipelines.values():
        assert {branch.removeprefix("pred_") for branch in guidance.order} == {"cond", "uncond"}
    assert all(hasattr(diffusers.guiders, name) for name in family.guiders)


def test_every_pipeline_of_the_facts_is_built_by_a_tiny_case() -> None:
    """One that is listed and nowhere run would be listed on faith."""
    built = {type(case.build()).__name__ for case in (*TINY.values(), *KIN.values())}
    assert {name for family in families().values() for name in family.pipelines} <= built


@pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)
def test_what_binds_the_order_of_tokens_exists_in_diffusers(family: Family) -> None:
    free = family.free_order
    if free is None:
        # Nobody has looked at chunks, nor where no method orders tokens; streams that the parent joins or exchanges on
        # the way are not followed.
        linear = any(site.kind == "linear" for stack in family.stacks for site in stack.attention)
        followed = not family.between_blocks and not any(stack.joined for stack in family.stacks)
        assert linear or family.chunks is not None or not followed
        return
    transformers = [getattr(diffusers, name) for name in family.transformers]
    of_transformers = {name for model in transformers for name in inspect.signature(model.forward).parameters}
    assert set(free.unless_given) <= of_transformers
    of_stacks = {name for stack in family.stacks for name in stack.blocks}
    assert set(free.except_blocks) <= of_stacks
    modules = [importlib.import_module(model.__module__) for model in transformers]
    for stack in family.stacks:
        classes = [getattr(m, block) for m in modules for block in stack.blocks if hasattr(m, block)]
        assert classes
        for block in set(classes):
            parameters = inspect.signature(block.forward).parameters
            wanted = {argument.name for argument in free.arguments} & parameters.keys()
            # All that the blocks get besides are the streams, what is per sample, and masks.
            assert bool(wanted) == bool(free.arguments)
            # Those of the sound are not of the video's tokens.
            tables = {name for name in parameters if any(word in name for word in ("rotary", "freqs", "pos_emb"))}
            tables -= {name for name in tables if "audio" in name}
            assert tables == wanted


@pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)
def test_modules_not_to_convert_exist(family: Family) -> None:
    """Each entry matches a module of one of the family's tiny transformers; a typing error would protect nothing."""
    names = {
        name
        for facts in _built()
        if facts.family is family
        for denoiser in facts.denoisers
        for name, _ in denoiser.module.named_modules()
    }
    for entry in {*family.modules_to_not_convert, *family.modulation}:
        assert any(matches(name, entry) for name in names), entry


def test_a_layer_of_a_block_is_not_the_models_of_the_same_name() -> None:
    assert matches("proj_out", "proj_out")
    assert not matches("single_transformer_blocks.0.proj_out", "proj_out")
    assert matches("transformer_blocks.3.norm1.linear", "*.norm1.linear")
    assert matches("blocks.0.attn1.to_q", "blocks.0") and not matches("blocks.01.attn1.to_q", "blocks.0")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_streams_are_read_and_packed_as_the_block_does(name: str) -> None:
    case = FAMILIES[name]
    pipe = case.build()
    facts = inspect_pipeline(pipe)
    seen = 0
    handles = []
    for site in facts.denoisers[0].blocks:

        def check(module: torch.nn.Module, args: tuple, kwargs: dict, output: object, site: BlockSite = site) -> None:
            nonlocal seen
            seen += 1
            inputs = site.streams(args, kwargs)
            outputs = site.unpack(output, inputs)
            assert [tuple(a.shape) for a in inputs] == [tuple(b.shape) for b in outputs]
            packed = site.pack(outputs)
            assert type(packed) is type(output)
            if isinstance(output, tuple):
                assert all(a is b for a, b in zip(packed, output, strict=True))
            # The stream that the facts call `hidden_states` is the picture, the other is the text.
            lengths = dict(zip(site.stack.streams, (s.shape[1] for s in outputs), strict=True))
            assert site.stack.joined == (site.stack.path in case.joined)
            assert lengths["hidden_states"] - case.text_tokens * site.stack.joined in case.lengths
            if "encoder_hidden_states" in lengths:
                assert lengths["encoder_hidden_states"] in case.text_lengths

        handles.append(site.module.register_forward_hook(check, with_kwargs=True))
    case.run(pipe, num_inference_steps=1)
    assert seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(("name", "returned"), [("wan", (1,)), ("wan", (1, 2)), ("flux", 1), ("flux", (1, 2, 3))])
def test_a_block_that_returns_another_form_is_refused_with_the_difference(name: str, returned: object) -> None:
    """No look at a class tells what it returns; a tuple in the place of a tensor would lose samples in silence."""
    site = inspect_pipeline(FAMILIES[name].build()).denoisers[0].blocks[0]
    hidden = torch.zeros(2, 3, 4)
    output = (hidden,) * len(returned) if isinstance(returned, tuple) else hidden
    with pytest.raises(
        AccelError, match=r"blocks\.0 returned (a tuple of \d|one Tensor), and the facts .*hidden_states:"
    ):
        site.unpack(output, (hidden,) * len(site.stack.streams))
