"""Tokens tiled once per forward: the same results as per call, beside caches, and the plain order where it is bound."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor, nn

import accel
from accel.config import AccelConfig
from accel.errors import AccelError, AccelWarning
from accel.kernels.arrangement import arrange
from accel.methods.segments import Segment
from accel.pipelines.sites import inspect_pipeline
from tests.conformance.snapshot import snapshot
from tests.stand_ins import built
from tests.tiny_pipelines import TINY

FREE = ["cogvideox", "dit", "flux", "hunyuan_video", "wan", "wan22"]
PISA: dict[str, Any] = {"method": "pisa", "density": 0.5, "dense_layers": 1, "dense_steps": 0.25}
ADASPA: dict[str, Any] = {"method": "adaspa", "density": 0.5, "search_steps": (0.0, 0.5)}
DELTA = {"method": "delta", "interval": 2}
TDC = {"method": "tdc", "threshold": 10.0, "max_skips": 1, "dense_final_steps": 0.0}


def apart(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def enabled(pipe: Any, attention: dict[str, Any], tiling: str, cache: dict[str, Any] | None = None) -> Any:
    return accel.enable(pipe, AccelConfig(attention={**attention, "tiling": tiling}, cache=cache))


def both(
    name: str, attention: dict[str, Any], cache: dict[str, Any] | None = None, pipe: Any = None, **call: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a pipeline gives with tokens tiled per call and per forward, and the runs' records."""
    case, pipe = TINY[name], pipe or built(name)[0]
    outputs, runs = {}, {}
    for tiling in ("call", "forward"):
        with enabled(pipe, attention, tiling, cache) as session:
            outputs[tiling] = case.run(pipe, **{"num_inference_steps": 4, **call})
        runs[tiling] = session.summary().to_dict()["runs"][-1]
    return outputs, runs


def tiled(run: dict[str, Any]) -> int:
    return next(report["tiled_forwards"] for name, report in run["methods"].items() if name in ("pisa", "adaspa"))


def without_tiling(run: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in both: every count, the density, the fallbacks."""
    reports = {name: {**report, "tiled_forwards": None} for name, report in run["methods"].items()}
    inexact = ("relative_change",)
    reports = {name: {k: v for k, v in report.items() if k not in inexact} for name, report in reports.items()}
    return {"methods": reports, "fallbacks": run["fallbacks"]}


@pytest.mark.parametrize("cache", [None, DELTA, TDC], ids=["alone", "delta", "tdc"])
@pytest.mark.parametrize("name", FREE)
def test_per_forward_equals_per_call(name: str, cache: dict[str, Any] | None) -> None:
    """With layers and steps that are dense; the grids of all but DiT are ragged: 3 x 12 x 16 and 22 x 26 tokens."""
    steps = 8 if name == "wan22" else 4  # two transformers share them
    outputs, runs = both(name, PISA, cache, num_inference_steps=steps)
    sparse_steps = steps * 3 // 4
    assert tiled(runs["forward"]) == sparse_steps * len(runs["forward"]["branches"]) and tiled(runs["call"]) == 0
    assert without_tiling(runs["forward"]) == without_tiling(runs["call"])
    assert runs["forward"]["methods"]["pisa"]["sparse"] > 0
    for report in (runs["forward"]["methods"].get(method) for method in ("delta", "tdc")):
        assert report is None or report["reused"] > 0
    assert apart(outputs["forward"], outputs["call"]) < 1e-5


@pytest.mark.parametrize(
    ("name", "cache", "call"),
    [
        ("wan", None, {"width": 80}),
        ("flux", None, {"height": 36, "width": 60}),
        ("hunyuan_video", DELTA, {}),
        ("wan22", TDC, {"num_frames": 9, "num_inference_steps": 8}),
        ("ltx2", None, {}),
    ],
)
def test_searches_and_other_ragged_grids(name: str, cache: dict[str, Any] | None, call: dict[str, Any]) -> None:
    outputs, runs = both(name, ADASPA, cache, **call)
    assert tiled(runs["forward"]) > 0
    assert without_tiling(runs["forward"]) == without_tiling(runs["call"])
    assert runs["forward"]["methods"]["adaspa"]["sparse"] > 0
    assert apart(outputs["forward"], outputs["call"]) < 1e-5


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("wan", {"method": "delta"}),
        ("flux", {"method": "delta", "cached_blocks": 0.9}),
        ("wan", {"method": "tdc", "threshold": 10.0, "max_skips": 1, "delta_dtype": "float8"}),
        ("hunyuan_video", {"method": "tdc", "threshold": 10.0, "max_skips": 1, "order": 1}),
    ],
)
def test_a_change_that_is_captured_in_one_order_is_reused_in_the_other(
    name: str, cache: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of three dense steps captures in the model's order, and the first step that is tiled reuses it."""
    moved: list[Segment] = []
    reordered = Segment.reordered
    monkeypatch.setattr(Segment, "reordered", lambda s, *a: (moved.append(s), reordered(s, *a))[1])
    pipe, outputs = built(name)[0], {}
    for tiling in ("call", "forward"):
        with enabled(pipe, {**PISA, "dense_steps": 0.5}, tiling, cache) as session:
            outputs[tiling] = TINY[name].run(pipe, num_inference_steps=6)
            again = TINY[name].run(pipe, num_inference_steps=6)
    run = session.summary().to_dict()["runs"][-1]
    assert tiled(run) == 3 * len(run["branches"]) and len(moved) == 2 * len(run["branches"])
    assert torch.equal(again, outputs["forward"]), "the second run begins in the model's order"
    assert run["methods"][cache["method"]]["reused_by_step"][3] > 0
    # Rounding may reach another of the few values of float8.
    assert apart(outputs["forward"], outputs["call"]) < (1e-3 if "delta_dtype" in cache else 1e-5)


@pytest.mark.parametrize("cache", [DELTA, TDC], ids=["delta", "tdc"])
def test_the_methods_may_be_installed_in_either_order(cache: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, _ = both("wan", PISA, cache)
    methods = AccelConfig.methods.fget
    assert methods is not None
    monkeypatch.setattr(AccelConfig, "methods", property(lambda config: methods(config)[::-1]))
    reversed_outputs, runs = both("wan", PISA, cache)
    assert list(runs["forward"]["methods"])[-1] == "pisa" and tiled(runs["forward"]) > 0
    assert torch.equal(reversed_outputs["call"], outputs["call"])
    assert torch.equal(reversed_outputs["forward"], outputs["forward"])


def test_blocks_see_the_order_and_the_rest_of_the_model_does_not() -> None:
    case, pipe = TINY["wan"], built("wan")[0]
    order = arrange((3, 12, 16))
    entering: dict[str, list[Tensor]] = {}
    leaving: dict[str, list[Tensor]] = {}
    for tiling in ("call", "forward"):
        blocks = pipe.transformer.blocks
        handles = [
            blocks[1].register_forward_pre_hook(
                lambda _, args, t=tiling: entering.setdefault(t, []).append(args[0].clone())
            ),
            pipe.transformer.norm_out.register_forward_pre_hook(
                lambda _, args, t=tiling: leaving.setdefault(t, []).append(args[0].clone())
            ),
        ]
        with enabled(pipe, PISA, tiling):
            case.run(pipe, num_inference_steps=4)
        for handle in handles:
            handle.remove()
    for index, (call, forward) in enumerate(zip(entering["call"], entering["forward"], strict=True)):
        if index < 2:
            assert torch.equal(forward, call), "a forward whose attentions are all dense keeps its order and its bits"
        else:
            assert apart(forward, order.apply(call)) < 1e-5 and apart(forward, call) > 0.1
    for call, forward in zip(leaving["call"], leaving["forward"], strict=True):
        assert apart(forward, call) < 1e-5


@pytest.mark.parametrize("setting", [{"density": 1.0}, {"dense_steps": 1.0}, {"dense_layers": 9}])
def test_nothing_sparse_is_the_plain_pipeline(setting: dict[str, Any]) -> None:
    case, (pipe, plain) = TINY["wan"], built("wan")
    accept = pytest.warns(AccelWarning, match="did nothing") if "density" not in setting else None
    with enabled(pipe, {**PISA, **setting}, "forward") as session:
        if accept is None:
            found = case.run(pipe, num_inference_steps=2)
        else:
            with accept:
                found = case.run(pipe, num_inference_steps=2)
    assert torch.equal(found, plain)
    run = session.summary().to_dict()["runs"][0]
    assert tiled(run) == 0 and not run["fallbacks"]


def test_too_few_tokens_keep_their_order() -> None:
    case, pipe = TINY["wan"], built("wan")[0]
    call = {"num_frames": 1, "height": 32, "width": 16, "num_inference_steps": 2}
    plain = case.run(pipe, **call)
    with (
        accel.enable(pipe, attention="pisa", tiling="forward") as session,
        pytest.warns(AccelWarning, match="fewer than two blocks"),
    ):
        assert torch.equal(case.run(pipe, **call), plain)
    assert tiled(session.summary().to_dict()["runs"][0]) == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wan_vace", "VACE adds hints between blocks: tokens are tiled per call"),
        ("flux_controlnet", "a ControlNet adds residuals between blocks: tokens are tiled per call"),
    ],
)
def test_what_a_parent_adds_between_blocks_binds_the_order(name: str, reason: str) -> None:
    outputs, runs = both(name, PISA, DELTA)
    assert torch.equal(outputs["forward"], outputs["call"])
    assert tiled(runs["forward"]) == 0 and not runs["call"]["fallbacks"]
    (fallback,) = runs["forward"]["fallbacks"]
    assert (fallback["method"], fallback["reason"]) == ("pisa", reason)
    assert fallback["times"] == 3 * len(runs["forward"]["branches"])


def test_timesteps_of_tokens_bind_the_order() -> None:
    pipe: Any = TINY["wan"].build()
    pipe.register_to_config(expand_timesteps=True)
    seen: list[int] = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["timestep"].ndim), with_kwargs=True
    )
    outputs, runs = both("wan", PISA, pipe=pipe)
    assert set(seen) == {2}
    assert torch.equal(outputs["forward"], outputs["call"])
    (fallback,) = runs["forward"]["fallbacks"]
    assert fallback["reason"] == "every token has a timestep of its own: tokens are tiled per call"
    assert tiled(runs["forward"]) == 0 and runs["forward"]["methods"]["pisa"]["sparse"] > 0


def test_families_that_do_not_allow_it_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = built("wan")[0]
    facts = inspect_pipeline(pipe)
    bound = replace(facts, family=replace(facts.family, free_order=None))
    before = snapshot(pipe)
    with monkeypatch.context() as patch:
        patch.setattr("accel.session.inspect_pipeline", lambda _: bound)
        with pytest.raises(AccelError, match=r"^pisa cannot tile once per forward: .* Wan 2.1 .*; use tiling='call'$"):
            accel.enable(pipe, attention="pisa", tiling="forward")
        assert snapshot(pipe) == before
        accel.enable(pipe, attention="pisa", tiling="call").disable()


def test_blocks_that_treat_tokens_by_their_place_are_refused() -> None:
    pipe: Any = TINY["hunyuan_video"].build()
    config = {key: value for key, value in pipe.transformer.config.items() if not key.startswith("_")}
    pipe.transformer = HunyuanVideoTransformer3DModel(**{**config, "image_condition_type": "token_replace"})
    line = (
        r"^adaspa cannot tile once per forward: transformer\.transformer_blocks\.0 is a "
        r"HunyuanVideoTokenReplaceTransformerBlock, which treats some tokens by their place; use tiling='call'$"
    )
    with pytest.raises(AccelError, match=line):
        accel.enable(pipe, attention="adaspa", tiling="forward")


class Changing(nn.Module):
    """A block behind which the parent changes the tokens, which it does without a word to anybody."""

    def __init__(self, block: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.block = block
        self.in_place = in_place

    def forward(self, *args: Any) -> Tensor:
        hidden = self.block(*args)
        return hidden.add_(0.1) if self.in_place else hidden + 0.1


@pytest.mark.parametrize("in_place", [False, True])
def test_tokens_that_change_between_blocks_stop_the_run_instead_of_going_wrong(in_place: bool) -> None:
    case = TINY["wan"]
    pipe: Any = case.build()
    with enabled(pipe, PISA, "forward"):
        block = pipe.transformer.blocks[1]
        pipe.transformer.blocks[1] = Changing(block, in_place)
        with pytest.raises(AccelError, match=r"changed the tokens in front of transformer\.blocks\.2.*tiling='call'"):
            case.run(pipe)
        pipe.transformer.blocks[1] = block
        again = case.run(pipe)
    with enabled(pipe, PISA, "forward"):
        assert torch.equal(case.run(pipe), again)


@pytest.mark.parametrize("fatal_call", [5, 9])
def test_an_exception_in_a_tiled_forward_leaves_no_order_behind(fatal_call: int) -> None:
    case = TINY["wan"]
    pipe: Any = case.build()
    plain = case.run(pipe)
    before = snapshot(pipe)
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fatal_call:
            raise RuntimeError("stopped by the test")

    with enabled(pipe, PISA, "forward", DELTA) as session:
        expected = case.run(pipe)
        handle = pipe.transformer.blocks[0].ffn.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="stopped by the test"):
            case.run(pipe, seed=9)
        handle.remove()
        assert session._board.order is not None, "it failed in a tiled forward"
        by_hand = torch.randn(1, 16, 3, 24, 32), torch.tensor([500.0]), torch.randn(1, 24, 32)
        with torch.no_grad():
            found = pipe.transformer(*by_hand)[0]
        assert torch.equal(case.run(pipe), expected)
    assert snapshot(pipe) == before
    assert torch.equal(case.run(pipe), plain)
    with torch.no_grad():
        assert torch.equal(found, pipe.transformer(*by_hand)[0])


@pytest.mark.parametrize("name", ["wan", "flux"])
def test_compiled_blocks_stay_as_many_graphs(name: str) -> None:
    case = TINY[name]
    pipe: Any = case.build()
    outputs, graphs = {}, {}
    for tiling in ("call", "forward"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
        with enabled(pipe, PISA, tiling, DELTA) as session:
            outputs[tiling] = case.run(pipe, num_inference_steps=4)
        graphs[tiling] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert not torch._dynamo.utils.counters["graph_break"]
    assert tiled(session.summary().to_dict()["runs"][0]) > 0
    assert graphs["forward"] == graphs["call"] > 0
    assert apart(outputs["forward"], outputs["call"]) < 1e-5


def test_a_mask_over_image_tokens_hides_the_same_tokens() -> None:
    case = TINY["hunyuan_video"]
    pipe: Any = case.build()

    def hide_the_first_row(_: Any, args: tuple[Any, ...]) -> Any:
        mask = args[3].clone()
        mask[..., :16] = False
        return (*args[:3], mask, *args[4:])

    for block in (*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks):
        block.register_forward_pre_hook(hide_the_first_row)
    plain = case.run(pipe, num_inference_steps=2)
    with (
        enabled(pipe, {**PISA, "dense_steps": 0.0}, "forward") as session,
        pytest.warns(AccelWarning, match="the mask hides more"),
    ):
        found = case.run(pipe, num_inference_steps=2)
    assert tiled(session.summary().to_dict()["runs"][0]) == 2
    assert apart(found, plain) < 1e-5
