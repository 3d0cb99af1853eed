"""Sparse attention at its edges: what it holds, what it refuses, and what it leaves to diffusers and says so."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ContextParallelConfig, ParallelConfig
from diffusers.models.attention_dispatch import dispatch_attention_fn

import accel
from accel.config import AccelConfig
from accel.errors import AccelError, AccelWarning
from accel.kernels import arrangement
from accel.kernels.arrangement import Arrangement
from accel.kernels.selection import kept_number
from accel.methods import pisa
from accel.methods.block_search import Found
from accel.methods.sparse_call import SparseCall
from accel.pipelines.sites import inspect_pipeline
from accel.runtime.clock import Moment
from tests.tiny.video import WAN_SHAPE
from tests.tiny_pipelines import TINY


def last(session: Any) -> dict[str, Any]:
    return session.summary().to_dict()["runs"][-1]


def test_what_wan_14b_at_720p_holds() -> None:
    """81 frames are 21 latent ones of 45 x 80 tokens; 40 heads of 128, 40 layers, two branches."""
    tokens, heads = 21 * 45 * 80, 40
    blocks = -(-tokens // 64)
    nothing = torch.empty(1, tokens, heads, 128, device="meta")
    sizes = torch.empty(1, blocks, dtype=torch.int32, device="meta")
    call = SparseCall(
        Moment(0, 0, 0, 50, "cond", "transformer", (21, 45, 80)),
        0,
        *[nothing] * 3,
        sizes,
        slice(0, blocks),
        slice(0, 0),
        None,
        64,
        None,
    )
    # Heads that got more have half as much again as the density says.
    lists = torch.empty(1, heads, blocks, kept_number(0.2, blocks) * 3 // 2, dtype=torch.int32, device="meta")
    found = Found.by(call, torch.empty(1, heads, tokens, device="meta"), (lists, lists[..., 0]), 0)
    assert found.bits.nbytes == heads * blocks * -(-blocks // 8) < lists.nbytes / 9
    # docs/sparse_attention.md says 1.5 GB, and 0.6 GB after the last search.
    assert 40 * 2 * found.nbytes == pytest.approx(1.53e9, rel=0.005)
    after = Found.by(call, None, (lists, lists[..., 0]), 30)
    assert 40 * 2 * after.nbytes == pytest.approx(0.56e9, rel=0.005)


@pytest.mark.parametrize("router", ["mean", "covariance", "search"])
def test_autocast_chooses_in_float32(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    highest = pisa.highest_blocks

    def watched(call: SparseCall, scores: torch.Tensor, density: float) -> Any:
        # A product of the kind that autocast would shorten, made where the choice is made.
        seen.extend((scores.dtype, (scores @ scores.mT).dtype))
        return highest(call, scores, density)

    monkeypatch.setattr(pisa, "highest_blocks", watched)
    case = TINY["wan"]
    pipe = case.build()
    with torch.autocast("cpu", torch.bfloat16), accel.enable(pipe, attention="pisa", density=0.5, router=router):
        case.run(pipe)
    assert set(seen) == {torch.float32}


def test_context_parallelism_that_is_switched_on_later_runs_dense_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    case = TINY["wan"]
    pipe = case.build()
    plain = case.run(pipe)
    # What `enable_parallelism` leaves on the processors; the function itself asks for several GPUs.
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ring_degree=2))
    dispatch, given = dispatch_attention_fn, []

    def on_one_device(*args: Any, parallel_config: Any, **kwargs: Any) -> torch.Tensor:
        given.append(parallel_config)
        return dispatch(*args, **kwargs)

    monkeypatch.setattr("accel.pipelines.attention.call.dispatch_attention_fn", on_one_device)
    with accel.enable(pipe, attention="pisa", dense_layers=0) as session:
        for block in pipe.transformer.blocks:
            block.attn1.processor._parallel_config = config
        with pytest.warns(AccelWarning, match="pisa was on and did nothing: context parallelism spreads the tokens"):
            found = case.run(pipe)
    assert torch.equal(found, plain)
    calls = 2 * len(pipe.transformer.blocks)
    assert len(given) == 8 * calls and all(each is config for each in given), "diffusers does its part"
    run = last(session)
    assert run["methods"]["pisa"]["sparse"] == 0
    (fallback,) = run["fallbacks"]
    # The first quarter of eight steps is dense anyway.
    assert fallback["times"] == 6 * calls
    with pytest.raises(AccelError, match="has its tokens spread over devices by context parallelism"):
        accel.enable(pipe, attention="pisa")


def test_nothing_of_the_order_of_tokens_stays_after_disable(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Arrangement]] = []
    build = arrangement._build

    def watched(*args: Any) -> Arrangement:
        result = build(*args)
        made.append(weakref.ref(result))
        return result

    monkeypatch.setattr(arrangement, "_build", watched)
    arrangement.let_go_of_arrangements()
    case = TINY["wan"]
    pipe = case.build()
    with accel.enable(pipe, attention="adaspa", search_steps=(0.0,)):
        case.run(pipe)
        assert len(made) == 1 and made[0]() is not None, "one for all layers, steps and branches"
    gc.collect()
    assert made[0]() is None


@pytest.mark.parametrize(
    "setting", [{"attention": "pisa", "dense_layers": 0}, {"attention": "adaspa"}], ids=["pisa", "adaspa"]
)
def test_a_density_that_keeps_all_blocks_is_dense_and_told(setting: dict[str, Any]) -> None:
    case = TINY["wan"]
    pipe = case.build()
    blocks = -(-case.tokens // 64)
    plain = case.run(pipe)
    line = f"did nothing: density=0.99 of {blocks} blocks of 64 image tokens is all of them$"
    with accel.enable(pipe, **setting, density=0.99) as session, pytest.warns(AccelWarning, match=line):
        found = case.run(pipe)
    assert torch.equal(found, plain)
    (report,) = last(session)["methods"].values()
    (fallback,) = last(session)["fallbacks"]
    assert report["sparse"] == report["searched"] == 0
    assert fallback["times"] == 6 * 2 * len(pipe.transformer.blocks)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_that_becomes_float64_runs_dense_and_is_told(autocast: bool) -> None:
    case = TINY["wan"]
    pipe = case.build()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), accel.enable(pipe, attention="pisa") as session:
        pipe.transformer.double()
        with pytest.warns(AccelWarning, match="did nothing: there are no kernels for tensors in float64"):
            found = case.run(pipe)
        session.disable()
        plain = case.run(pipe)
    assert torch.equal(found, plain)
    assert last(session)["methods"]["pisa"]["sparse"] == 0


def test_a_head_size_without_a_kernel_is_refused() -> None:
    pipe = TINY["wan"].build()
    pipe.transformer = type(pipe.transformer)(**{**WAN_SHAPE, "attention_head_dim": 20})
    line = (
        r"^adaspa has kernels .* multiples of 8 up to 128; transformer\.blocks\.0\.attn1 has heads of 20; "
        r"cache='delta' or .* does without$"
    )
    with pytest.raises(AccelError, match=line):
        accel.enable(pipe, attention="adaspa")
    accel.enable(pipe, cache="delta").disable()


def test_a_family_without_softmax_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = TINY["wan"].build()
    facts = inspect_pipeline(pipe)
    blocks = [replace(block, attention=()) for block in facts.denoisers[0].blocks]
    bare = replace(facts, denoisers=(replace(facts.denoisers[0], blocks=tuple(blocks)),))
    monkeypatch.setattr("accel.session.inspect_pipeline", lambda pipe: bare)
    with pytest.raises(
        AccelError, match=r"^pisa needs softmax attention among image tokens, and .* of wan have none; cache='delta'"
    ):
        accel.enable(pipe, attention="pisa")


@pytest.mark.parametrize(
    "setting",
    [
        {"attention": "pisa"},
        {"attention": "pisa", "search_steps": (0.5,), "router": "search"},
        {"attention": "pisa", "router": "search"},
        {"attention": "adaspa"},
        {"attention": "adaspa", "recall": 0.5},
        {"attention": "adaspa", "head_adaptive": False},
    ],
)
def test_what_a_file_or_a_summary_says_can_be_asked_for_again(setting: dict[str, Any], tmp_path: Path) -> None:
    pipe = TINY["wan"].build()
    with accel.enable(pipe, **setting) as session:
        (method,) = session._methods
        told = session.config.to_dict()
    AccelConfig.from_dict(told).save_pretrained(tmp_path)
    again = [AccelConfig.from_dict(json.loads(json.dumps(told))), AccelConfig(attention=method.config), tmp_path]
    for given in again:
        with accel.enable(pipe, given) as session:
            assert session._methods[0].config == method.config
    # The order of flat keywords does not matter.
    with accel.enable(pipe, **dict(reversed(setting.items()))) as session:
        assert session._methods[0].config == method.config
