"""FlashBlock: both parts are all of the attention, what is kept is used when it may be, memory, refusals, reports."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import accel
from accel.config import AccelConfig
from accel.errors import AccelError, AccelWarning
from accel.kernels.forms import use
from accel.methods import flashblock_form
from accel.methods.flashblock import FlashBlock, FlashBlockConfig
from accel.methods.handover import BlockChoice
from accel.methods.residual import Residuals, needed
from accel.pipelines.families import families
from accel.runtime.clock import Clock, Moment
from tests.sparse_calls import in_blocks, last, moment, some_blocks, tensors
from tests.tiny_pipelines import TINY

ADASPA = {"attention": "adaspa", "density": 0.5, "search_steps": (0.0, 0.5)}
FORMS = ["reference", "cpu", pytest.param("triton", marks=pytest.mark.interpreter)]


@pytest.mark.parametrize("words", [0, 9])
@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_all_refreshed_is_dense_and_so_is_reuse_with_the_same_queries(form: str, density: float, words: int) -> None:
    with use(form):
        call = in_blocks(moment(), tensors(1, words=words), words)
        residuals, chosen = Residuals(), some_blocks(call, density)
        found = residuals.refresh(call, chosen)
        kept = residuals.at(call)
        assert kept is not None
        wanted, _ = call.dense(call.rows(call.image))
        again = residuals.reuse(call, kept)
    assert kept.lse.isinf().all() if density == 1.0 else kept.lse.isfinite().all(), "no block is left out at 1"
    valid = call.rows(call.image).stop - call.rows(call.image).start
    assert found.shape == (1, valid, 2, 16)
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    assert torch.equal(again, found)


def test_the_error_of_reuse_shrinks_with_the_change_of_the_queries() -> None:
    query, key, value = tensors(1)
    direction = tensors(2)[0]
    residuals, errors = Residuals(), []
    call = in_blocks(moment(), (query, key, value))
    residuals.refresh(call, some_blocks(call, 0.4))
    for size in (0.1, 0.05, 0.025):
        moved = in_blocks(moment(1), (query + size * direction, key, value))
        kept = residuals.at(moved)
        assert kept is not None
        errors.append((residuals.reuse(moved, kept) - moved.dense(slice(0, 132))[0]).norm().item())
    assert errors[0] > 0
    for larger, smaller in pairwise(errors):
        assert smaller == pytest.approx(larger / 2, rel=0.1), "first order in the change"


@pytest.mark.parametrize("order", [("cond", "uncond"), ("uncond", "cond"), ("cond",)])
def test_branches_never_see_each_other(order: tuple[str, ...]) -> None:
    seeds = {"cond": 1, "uncond": 2}
    residuals = Residuals()
    for branch in order:
        call = in_blocks(moment(0, branch), tensors(seeds[branch]))
        residuals.refresh(call, some_blocks(call, 0.4))
    for branch in order:
        call = in_blocks(moment(1, branch), tensors(seeds[branch] + 10))
        kept = residuals.at(call)
        alone = Residuals()
        first = in_blocks(moment(0, branch), tensors(seeds[branch]))
        alone.refresh(first, some_blocks(first, 0.4))
        own = alone.at(call)
        assert kept is not None and own is not None
        assert torch.equal(residuals.reuse(call, kept), alone.reuse(call, own))
    assert residuals.at(in_blocks(moment(1, "other"), tensors(1))) is None


@pytest.mark.parametrize("change", [{"run": 1}, {"chunk": 1}, {"denoiser": "transformer_2"}])
def test_another_run_chunk_or_denoiser_starts_clean(change: dict[str, Any]) -> None:
    residuals = Residuals()
    call = in_blocks(moment(), tensors(1))
    residuals.refresh(call, some_blocks(call, 0.4))
    assert residuals.nbytes > 0
    assert residuals.at(in_blocks(moment(1, **change), tensors(1))) is None
    assert residuals.nbytes == 0


def test_what_was_kept_for_another_shape_is_not_used() -> None:
    residuals = Residuals()
    call = in_blocks(moment(), tensors(1, words=9), 9)
    residuals.refresh(call, some_blocks(call, 0.4))
    assert residuals.at(in_blocks(moment(1), tensors(1, words=9), 9)) is not None
    for parts, words in ((tensors(1, words=10), 10), (tensors(1), 0), (tensors(1, words=9, dtype=torch.bfloat16), 9)):
        assert residuals.at(in_blocks(moment(1), parts, words)) is None


@pytest.mark.parametrize(
    "attention", [ADASPA, {"attention": "pisa", "density": 0.5, "tail": "none"}, {"attention": "pisa", "density": 0.25}]
)
def test_interval_1_gives_the_bits_of_the_attention(attention: dict[str, Any]) -> None:
    case = TINY["wan"]
    pipe = case.build()
    with accel.enable(pipe, **attention):
        expected = case.run(pipe)
    with accel.enable(pipe, **attention, cache="flashblock", interval=1) as session:
        assert torch.equal(case.run(pipe), expected)
    assert last(session)["methods"]["flashblock"]["attention_calls"] == 0


NO_TAIL = {"attention": "pisa", "tail": "none", "density": 0.5, "dense_steps": 0.0, "dense_layers": 0}


@pytest.mark.parametrize(("name", "settings"), [("flux", ADASPA), ("wan", NO_TAIL)], ids=["flux-adaspa", "wan-pisa"])
def test_beside_a_sparse_attention_what_it_drops_is_back(name: str, settings: dict[str, Any]) -> None:
    case = TINY[name]
    pipe = case.build()
    plain = case.run(pipe)
    with accel.enable(pipe, **settings):
        dropped = case.run(pipe)
    with accel.enable(pipe, **settings, cache="flashblock") as session:
        first, second = case.run(pipe), case.run(pipe)
    assert torch.equal(first, second)
    methods = last(session)["methods"]
    own, beside = methods[settings["attention"]], methods["flashblock"]
    assert beside["reused"] == own["sparse"] > 0 and beside["refreshed"] == own["refreshed"] > 0
    assert beside["density"] == pytest.approx(own["density"])
    assert 0 < (first - plain).norm() < (dropped - plain).norm()
    assert torch.equal(case.run(pipe), plain)


def test_steps_that_refresh_and_the_summary() -> None:
    case = TINY["wan"]
    pipe = case.build()
    layers = len(pipe.transformer.blocks)
    with accel.enable(pipe, cache="flashblock", density=0.25, dense_steps=0.25) as session:
        case.run(pipe)
    run = last(session)
    report = run["methods"]["flashblock"]
    every = 2 * layers
    assert run["counts"]["flashblock"] == {"dense": 2 * every, "refreshed": 2 * every, "reused": 4 * every}
    assert sum(run["counts"]["flashblock"].values()) == report["attention_calls"]
    for said in run["blocks"]["flashblock"]["transformer"].values():
        assert [sum(map(bool, words)) for words in zip(*said.values(), strict=True)] == [1] * 8, "one word for each"
    assert report["refreshed_by_step"] == [0, 0, every, 0, 0, every, 0, 0]
    assert report["reused_by_step"] == [0, 0, 0, every, every, 0, every, every]
    assert report["attention_calls"] == 8 * every and report["reused_fraction"] == 0.5
    assert report["density"] == pytest.approx(2 / 9)
    assert report["overall_density"] == pytest.approx((4 * 2 / 9 + 4) / 8)
    text = str(session.summary())
    assert f"reused in {4 * every} of {8 * every} attention calls (50.0%) at density 0.222, 0.611 over all" in text
    assert f"refreshed in {2 * every} by interval 3, without calibration, holding" in text
    # Outputs in float32, two sums for each query, two blocks and a count for each of nine rows.
    each = case.tokens * (64 * 4 + 2 * 4) + 9 * 3 * 4
    assert report["held_bytes"] == 2 * layers * 2 * each
    query = torch.empty(1, case.tokens, 2, 64)
    need = needed(query, case.tokens, 0.25, 64, totals=True)
    assert report["held_bytes"] <= 2 * layers * (need.outputs + need.beside) < 1.01 * report["held_bytes"]
    assert need.outputs == query.nbytes


@pytest.mark.parametrize(
    ("steps", "notes"), [(7, ["flashblock brings little with fewer than 8 steps: 7 here"]), (8, [])]
)
def test_few_steps_are_remarked(steps: int, notes: list[str]) -> None:
    case = TINY["wan"]
    pipe = case.build()
    with accel.enable(pipe, cache="flashblock") as session:
        case.run(pipe, num_inference_steps=steps)
    assert last(session)["notes"] == notes and last(session)["methods"]["flashblock"]["reused"] > 0


def test_a_search_refreshes_and_a_refresh_is_computed() -> None:
    case = TINY["wan"]
    pipe = case.build()
    layers = len(pipe.transformer.blocks)
    settings = {"attention": "adaspa", "density": 0.5, "search_steps": (0.0, 0.5)}
    with accel.enable(pipe, **settings, cache="flashblock", interval=5) as session:
        case.run(pipe)
    # The first search is dense; the second, in the fifth step, changes the exact blocks.
    report = last(session)["methods"]["flashblock"]
    assert [count // layers for count in report["refreshed_by_step"]] == [0, 2, 0, 0, 2, 0, 0, 0]
    caches = ["flashblock", {"method": "tdc", "threshold": 10.0, "max_skips": 7}]
    with accel.enable(pipe, cache=caches, density=0.5, interval=4) as session:
        case.run(pipe)
    run = last(session)
    reused = [count > 0 for count in run["methods"]["tdc"]["reused_by_step"]]
    # The first two steps are dense, the third refreshes; the seventh would be skipped otherwise.
    assert reused == [False, False, False, True, True, True, False, False]
    assert [count // layers for count in run["methods"]["flashblock"]["refreshed_by_step"]] == [0, 0, 2, 0, 0, 0, 2, 0]
    (fallback,) = (found for found in run["fallbacks"] if found["method"] == "tdc")
    assert fallback["reason"] == "flashblock: a refresh is due"


def test_equal_inputs_beside_an_attention_stay_dense() -> None:
    """Equal queries in every step: what a sparse attention drops comes back exactly."""
    case = TINY["flux"]
    pipe = case.build()

    def same(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "hidden_states": fixed, "timestep": torch.full_like(kwargs["timestep"], 0.5)}

    fixed = torch.randn(1, case.tokens, pipe.transformer.config.in_channels, generator=torch.Generator().manual_seed(1))
    handle = pipe.transformer.register_forward_pre_hook(same, with_kwargs=True)
    outputs: list[Tensor] = []
    other = pipe.transformer.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    with accel.enable(pipe, **ADASPA, cache="flashblock") as session:
        case.run(pipe)
    handle.remove()
    other.remove()
    assert last(session)["methods"]["flashblock"]["reused"] > 0
    for output in outputs[1:]:
        assert (output - outputs[0]).norm() < 1e-5 * outputs[0].norm()


def test_another_text_within_a_run_is_computed_anew() -> None:
    case = TINY["cogvideox"]
    pipe = case.build()
    width, layers = pipe.transformer.config.text_embed_dim, len(pipe.transformer.transformer_blocks)
    texts = [torch.randn(2, length, width, generator=torch.Generator().manual_seed(1)) for length in (24, 100)]
    call: dict[str, Any] = {"prompt": None, "negative_prompt": None}
    call |= {"prompt_embeds": texts[0][:1], "negative_prompt_embeds": texts[0][1:]}

    def change(pipe: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": texts[1]} if step == 2 else kept

    call |= {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with accel.enable(pipe, cache="flashblock", density=0.5, dense_steps=0.1, interval=8) as session:
        case.run(pipe, **call)
    assert last(session)["methods"]["flashblock"]["refreshed_by_step"] == [0, layers, 0, layers, 0, 0, 0, 0]


@pytest.mark.parametrize(("name", "masks"), [("flux", 0), ("hunyuan_video", 1)])
@pytest.mark.parametrize("settings", [ADASPA, {}], ids=["adaspa", "alone"])
def test_the_device_is_not_asked_in_every_layer(
    name: str, masks: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a text, whether blocks are still of the same sizes; with a mask at most once in a call of the denoiser."""
    case = TINY[name]
    pipe = case.build()
    plain_equal, asked = torch.equal, []

    def equal(one: Tensor, other: Tensor) -> bool:
        if sys._getframe(1).f_globals["__name__"].startswith("accel.methods"):
            asked.append(one.shape)
        return plain_equal(one, other)

    monkeypatch.setattr(torch, "equal", equal)
    with accel.enable(pipe, **settings, cache="flashblock") as session:
        case.run(pipe)
    run = last(session)
    assert run["methods"]["flashblock"]["reused"] > 0
    assert len(asked) <= masks * run["steps"] * len(run["branches"])


@pytest.mark.interpreter
def test_the_triton_form_in_a_pipeline() -> None:
    case = TINY["wan"]
    pipe = case.build()
    settings = {"density": 0.5, "block_size": 32, "dense_steps": 0.1}
    small = {"num_inference_steps": 3, "height": 32, "width": 32, "num_frames": 1}
    results = {}
    for form in ("cpu", "triton"):
        with use(form), accel.enable(pipe, cache="flashblock", **settings) as session:
            results[form] = case.run(pipe, **small)
        assert last(session)["methods"]["flashblock"]["reused"] > 0
    assert (results["cpu"] - results["triton"]).norm() <= 1e-4 * results["cpu"].norm()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"attention": "pisa"}, r"pisa with tail='hybrid' and flashblock .* not exact: set tail='none'$"),
        ({"attention": "adaspa", "tail": "zeroth"}, "adaspa with tail='zeroth' and flashblock .*: set tail='none'$"),
        (
            {"attention": "adaspa", "cache": FlashBlockConfig(density=0.3)},
            "flashblock: density=0.3 is for flashblock alone, .*: set density there",
        ),
        (
            {"attention": "adaspa", "cache": FlashBlockConfig(dense_steps=0.5, interval=1)},
            "flashblock: dense_steps=0.5 is for flashblock alone",
        ),
        ({"interval": 0}, r"interval=0 is not possible: .* \(nearest: 1\)"),
        ({"density": 0.0}, "density=0.0 is not possible"),
        ({"memory_limit": 0.0}, "memory_limit=0.0 is not possible"),
        ({"cache": ["flashblock", "flashblock"]}, "cache names flashblock twice"),
    ],
)
def test_refusals(settings: dict[str, Any], line: str) -> None:
    pipe = TINY["wan"].build()
    before = vars(pipe.transformer.blocks[0].attn1)["processor"]
    with pytest.raises(AccelError, match=line):
        accel.enable(pipe, **{"cache": "flashblock", **settings})
    assert vars(pipe.transformer.blocks[0].attn1)["processor"] is before


def test_a_flat_density_is_the_attention_s() -> None:
    config = AccelConfig(attention="adaspa", cache="flashblock").with_overrides({"density": 0.3, "interval": 4})
    assert config.attention is not None
    assert config.attention.model_dump()["density"] == 0.3
    assert config.cache == (FlashBlockConfig(interval=4),)
    alone = AccelConfig(cache="flashblock").with_overrides({"density": 0.3})
    assert alone.cache == (FlashBlockConfig(density=0.3),)


def wan_14b(limit: float | None) -> Any:
    """The method as it stands on a Wan of 40 blocks with two calls in each step."""
    family = families()["wan"]
    blocks = [SimpleNamespace(stack=family.stacks[0], attention=family.stacks[0].attention)] * 40
    denoiser = SimpleNamespace(name="transformer", blocks=blocks, beside=())
    facts = SimpleNamespace(guidance=family.pipelines["WanPipeline"], denoisers=[denoiser], family=family)
    handover = SimpleNamespace(prior=None, attention=True)
    context = SimpleNamespace(facts=facts, handover=handover, clock=Clock(facts.guidance))
    return FlashBlock(FlashBlockConfig(memory_limit=limit), context)  # type: ignore[arg-type]


def test_wan_14b_at_720p_is_refused_with_the_number() -> None:
    query = torch.empty(1, 75600, 40, 128, dtype=torch.bfloat16, device="meta")
    at = Moment(0, 0, 0, 50, "cond", "transformer", (21, 45, 80))
    choice = BlockChoice("adaspa", density=0.125, block_size=64, tiling="call")
    line = r"hold 66.3 GB, more than memory_limit=60.0 .* 75,600 tokens it keeps 28.8 GiB of outputs .* 2 guidance"
    with pytest.raises(AccelError, match=line):
        wan_14b(60.0).expect(at, query, choice)
    wan_14b(70.0).expect(at, query, choice)


def test_memory_is_checked_before_anything_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    case = TINY["wan"]
    pipe = case.build()
    plain = case.run(pipe)
    steps: list[int] = []
    call = {"callback_on_step_end": lambda pipe, step, timestep, kept: steps.append(step) or kept}
    with accel.enable(pipe, **ADASPA, cache="flashblock", memory_limit=1e-3) as session:
        with pytest.raises(AccelError, match=r"flashblock would hold .* GB, more than memory_limit=0.001 allows"):
            case.run(pipe, **call)
        assert not steps and last(session)["methods"]["flashblock"]["held_bytes"] == 0
        assert last(session)["state"] == "broken off"
    monkeypatch.setattr(flashblock_form, "free_bytes", lambda device: 2_000_000)
    with accel.enable(pipe, cache="flashblock"), pytest.raises(AccelError, match=r"half of the free memory, 0.001 GB"):
        case.run(pipe)
    monkeypatch.setattr(flashblock_form, "free_bytes", lambda device: None)
    with accel.enable(pipe, cache="flashblock") as session:
        assert not torch.equal(case.run(pipe), plain)
    (note,) = last(session)["notes"]
    assert note.startswith(
        "flashblock: cpu does not tell what memory it has free, so that what is held was not checked"
    )
    with accel.enable(pipe, cache="flashblock", memory_limit=1.0) as session:
        case.run(pipe)
    assert last(session)["notes"] == []
    assert torch.equal(case.run(pipe), plain)


def test_a_run_without_guidance_is_asked_for_the_memory_of_one_branch() -> None:
    case = TINY["wan"]
    pipe = case.build()
    with accel.enable(pipe, cache="flashblock") as session:
        case.run(pipe)
        case.run(pipe, guidance_scale=1.0)
    both, one = (run["methods"]["flashblock"]["held_bytes"] for run in session.summary().to_dict()["runs"])
    assert both == 2 * one > 0
    with accel.enable(pipe, cache="flashblock", memory_limit=1.1 * one / 1e9) as session:
        case.run(pipe, guidance_scale=1.0)
        assert last(session)["methods"]["flashblock"]["held_bytes"] == one
        with pytest.raises(AccelError, match="for each of 2 guidance branches"):
            case.run(pipe)
    with (
        accel.enable(pipe, cache="flashblock", memory_limit=0.9 * one / 1e9),
        pytest.raises(AccelError, match="for the one call in each step"),
    ):
        case.run(pipe, guidance_scale=1.0)


def test_memory_is_asked_for_all_branches_of_ltx2_at_its_first_call() -> None:
    """As a user calls it, who leaves its further guidance on: three calls in each step."""
    case = TINY["ltx2"]
    pipe = case.build()
    need = needed(torch.empty(2, case.tokens, 2, 64), case.tokens, 0.25, 64, totals=True)
    one = len(pipe.transformer.transformer_blocks) * (need.outputs + need.beside)
    guided = {"stg_scale": 1.0, "spatio_temporal_guidance_blocks": [2], "modality_scale": 3.0}
    line = f"would hold {3 * one / 1e9:.3g} GB, more than .* for each of 3 guidance branches"
    with accel.enable(pipe, cache="flashblock", memory_limit=1.1 * one / 1e9) as session:
        with pytest.raises(AccelError, match=line):
            case.run(pipe, **guided)
        assert last(session)["branches"] == ["cond_uncond"] and last(session)["steps"] == 1


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"dense_steps": 1.0}, "dense_steps=1.0 leaves it none of 8 steps"),
        ({"dense_steps": 0.8}, "every call was due for a refresh at interval=3: use more steps"),
        ({"block_size": 128, "num_frames": 1}, "tokens are fewer than two blocks of 128"),
        (
            {"attention": "adaspa", "density": 1.0},
            "flashblock was on and did nothing: the attention beside it made no call sparse",
        ),
    ],
)
def test_on_and_did_nothing_is_told(settings: dict[str, Any], line: str) -> None:
    case = TINY["wan"]
    pipe = case.build()
    call = {"num_frames": settings.pop("num_frames")} if "num_frames" in settings else {}
    with accel.enable(pipe, cache="flashblock", **settings) as session, pytest.warns(AccelWarning, match=line):
        case.run(pipe, **call)
    assert last(session)["methods"]["flashblock"]["reused"] == 0


def test_nothing_stays_after_a_run() -> None:
    case = TINY["wan"]
    pipe = case.build()
    with accel.enable(pipe, cache="flashblock") as session:
        case.run(pipe)
        (method,) = session._methods
        assert isinstance(method, FlashBlock) and last(session)["methods"]["flashblock"]["held_bytes"] > 0
        assert method._residuals.nbytes == 0
