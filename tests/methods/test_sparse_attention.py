"""PISA and AdaSpa on whole pipelines: all blocks exact is dense, schedules, routers, masks, refusals, reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import accel
from accel.config import AccelConfig
from accel.errors import AccelError, AccelWarning
from accel.kernels.selection import kept_number
from accel.methods.adaspa import AdaSpaConfig
from accel.methods.block_search import BlockSearch
from accel.methods.pisa import PISAConfig, deviations
from accel.methods.sparse_call import NotInBlocks, text_lengths
from accel.pipelines.attention import AttentionCall
from accel.pipelines.families import families
from tests.tiny_pipelines import TINY

# Every block is exact, but the whole way through tiling, padding and our own attention is taken.
ALL_EXACT = {
    "pisa": {"attention": "pisa", "density": 0.999, "dense_steps": 0.0, "dense_layers": 0},
    "pisa without tail": {"attention": "pisa", "density": 0.999, "dense_steps": 0.0, "dense_layers": 0, "tail": "none"},
    "adaspa": {"attention": "adaspa", "density": 0.999, "search_steps": (0.0,)},
}


def last(session: Any) -> dict[str, Any]:
    return session.summary().to_dict()["runs"][-1]


@pytest.fixture
def kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls in which every block is kept go the whole way too, instead of being dense at once."""
    monkeypatch.setattr("accel.methods.sparse_attention.require_choice", lambda *args: None)


@pytest.mark.usefixtures("kept_whole")
@pytest.mark.parametrize("block_size", [32, 64])
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("wan", "pisa"),
        ("wan_vace", "adaspa"),
        ("wan22", "pisa without tail"),
        ("cogvideox", "pisa"),
        ("hunyuan_video", "pisa"),
        ("hunyuan_video", "adaspa"),
        ("flux", "pisa"),
        ("flux", "adaspa"),
        ("dit", "pisa without tail"),
    ],
)
def test_all_blocks_exact_is_dense(name: str, setting: str, block_size: int) -> None:
    case = TINY[name]
    pipe = case.build()
    plain = case.run(pipe)
    with accel.enable(pipe, **ALL_EXACT[setting], block_size=block_size) as session:
        found = case.run(pipe)
    (report,) = last(session)["methods"].values()
    assert report["sparse"] + report["searched"] == report["attention_calls"] > 0
    assert report["density"] == 1.0
    assert (found - plain).norm() < 1e-4 * plain.norm()


def test_schedule_of_pisa() -> None:
    case = TINY["wan"]
    pipe = case.build()
    layers = len(pipe.transformer.blocks)
    with accel.enable(pipe, attention="pisa", density=0.25, dense_steps=0.25, dense_layers=1) as session:
        case.run(pipe)
    run = last(session)
    report = run["methods"]["pisa"]
    # Eight steps, two branches.
    assert report["sparse_by_step"] == [0, 0] + [2 * (layers - 1)] * 6
    assert report["attention_calls"] == 2 * 8 * layers and report["searched"] == 0
    blocks = -(-case.tokens // 64)
    expected = kept_number(0.25, blocks) / blocks
    assert report["density"] == pytest.approx(expected)
    share = report["sparse"] / report["attention_calls"]
    assert report["overall_density"] == pytest.approx(share * expected + 1 - share)
    text = str(session.summary())
    assert (
        f"{report['sparse']} of {report['attention_calls']} attention calls sparse at density {expected:.3f} of all key"
        in text
    )
    assert not run["fallbacks"]


def test_schedule_of_adaspa() -> None:
    case = TINY["wan22"]
    pipe = case.build()
    with accel.enable(pipe, attention="adaspa", density=0.5, search_steps=(0.25, 0.5)) as session:
        case.run(pipe)
    report = last(session)["methods"]["adaspa"]
    layers = len(pipe.transformer.blocks)
    # The second transformer has never searched when its turn comes, so that its first call is dense once more.
    switch = case.forwards["transformer"] // 2
    by_step = [0 if step <= 2 or step == switch else 2 * layers for step in range(8)]
    assert report["sparse_by_step"] == by_step
    assert report["searched"] == 2 * layers * (1 + (switch > 2))
    # Two branches; for each query block the bits of all key blocks and the log-sum-exp of its queries.
    blocks, heads = -(-case.tokens // 64), pipe.transformer.config.num_attention_heads
    each = heads * (blocks * -(-blocks // 8) + 4 * case.tokens) + 4 * blocks
    assert report["held_bytes"] == 2 * layers * each


def test_later_searches_reuse_the_first_ones_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = BlockSearch._look
    monkeypatch.setattr(BlockSearch, "_look", lambda s, c, *a: (looks.append(c.moment.step), look(s, c, *a))[1])
    case = TINY["wan"]
    pipe = case.build()
    with accel.enable(pipe, attention="adaspa", density=0.5, search_steps=(0.25, 0.5, 0.75)) as session:
        case.run(pipe)
    layers = len(pipe.transformer.blocks)
    assert sorted(looks) == sorted([2, 4, 6] * 2 * layers)
    report = last(session)["methods"]["adaspa"]
    assert report["searched"] == 2 * layers, "only the first search is dense"
    assert report["searches"] == 3 * 2 * layers and report["held_bytes"] > 0


@pytest.mark.parametrize("router", ["mean", "covariance", "threshold", "search"])
@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_routers_act_and_the_tail_counts(name: str, router: str) -> None:
    case = TINY[name]
    pipe = case.build()
    plain = case.run(pipe)
    errors = {}
    for tail in ("hybrid", "none"):
        with accel.enable(
            pipe, attention="pisa", density=0.25, router=router, tail=tail, dense_layers=0, dense_steps=0.25
        ) as session:
            errors[tail] = ((case.run(pipe) - plain).norm() / plain.norm()).item()
        assert 0 < last(session)["methods"]["pisa"]["density"] < 0.6
    assert 0 < errors["hybrid"] < 0.3 and errors["hybrid"] != errors["none"]


def test_text_and_its_padding_are_exact() -> None:
    """What stands in the padding of HunyuanVideo's text changes nothing, and the real words do."""
    case = TINY["hunyuan_video"]
    pipe = case.build()
    with accel.enable(pipe, attention="pisa", density=0.25, dense_steps=0.0, dense_layers=0) as session:
        first, other = case.run(pipe), case.run(pipe, prompt="a blue whale in the sea")
    assert not last(session)["fallbacks"]
    assert last(session)["methods"]["pisa"]["sparse"] > 0
    assert not torch.equal(first, other)


@pytest.mark.parametrize("setting", [{"attention": "pisa"}, {"attention": "adaspa", "search_steps": (0.0,)}])
def test_padding_of_the_text_buys_nothing(setting: dict[str, Any]) -> None:
    case = TINY["hunyuan_video"]
    pipe = case.build()
    results = []
    for length in (24, 192):
        with accel.enable(pipe, **setting, density=0.25) as session:
            results.append(case.run(pipe, max_sequence_length=length))
        (report,) = last(session)["methods"].values()
        assert report["sparse"] > 0
    assert (results[0] - results[1]).norm() < 1e-4 * results[0].norm()


@pytest.mark.parametrize(
    "setting",
    [
        {"attention": "adaspa", "search_steps": (0.0,), "head_adaptive": False},
        {"attention": "pisa", "router": "search", "search_steps": (0.0,), "dense_steps": 0.0, "dense_layers": 0},
    ],
)
@pytest.mark.usefixtures("kept_whole")
@pytest.mark.parametrize("lengths", [(200, 24), (24, 200)])
def test_another_text_within_a_run_is_searched_anew(setting: dict[str, Any], lengths: tuple[int, int]) -> None:
    case = TINY["cogvideox"]
    pipe = case.build()
    width = pipe.transformer.config.text_embed_dim
    texts = [torch.randn(2, length, width, generator=torch.Generator().manual_seed(1)) for length in lengths]
    call: dict[str, Any] = {"prompt": None, "negative_prompt": None}
    call |= {"prompt_embeds": texts[0][:1], "negative_prompt_embeds": texts[0][1:]}

    def change(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": texts[1]} if step == 2 else tensors

    call |= {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with accel.enable(pipe, **setting, density=0.999) as session:
        found = case.run(pipe, **call)
    (report,) = last(session)["methods"].values()
    assert report["density"] == 1.0 and report["searched"] == 2 * len(pipe.transformer.transformer_blocks)
    plain = case.run(pipe, **call)
    assert (found - plain).norm() < 1e-4 * plain.norm()


def test_autocast() -> None:
    case = TINY["hunyuan_video"]
    pipe = case.build()
    with torch.autocast("cpu", torch.bfloat16):
        plain = case.run(pipe)
        with accel.enable(pipe, attention="pisa", density=0.5) as session:
            found = case.run(pipe)
    assert last(session)["methods"]["pisa"]["sparse"] > 0
    assert (found - plain).norm() < 0.2 * plain.norm()


def mask(*rows: list[bool], text: Any = "suffix") -> AttentionCall:
    return AttentionCall(text, 4, torch.tensor(rows)[:, None, None], dispatched=True)


def test_masks() -> None:
    padded = mask([True] * 6 + [False] * 2, [True] * 8, [True] * 4 + [False] * 4)
    assert text_lengths(padded, 8).tolist() == [2, 4, 0]
    padded = mask([True] * 2 + [False] * 2 + [True] * 4, [True] * 8, [False] * 4 + [True] * 4, text="prefix")
    assert text_lengths(padded, 8).tolist() == [2, 4, 0]
    for wrong in (
        mask([True] * 3 + [False] * 5),
        mask([True, False] * 4),
        mask([False] * 2 + [True] * 6),
        mask([False] * 2 + [True] * 6, text="prefix"),
        mask([True] * 6 + [False] * 2, text="prefix"),
        AttentionCall("suffix", 4, torch.zeros(1, 1, 1, 8), dispatched=True),
        AttentionCall("suffix", 4, torch.ones(1, 1, 8, 8, dtype=torch.bool), dispatched=True),
        AttentionCall("none", 4, torch.ones(1, 1, 1, 8, dtype=torch.bool), dispatched=True),
    ):
        with pytest.raises(NotInBlocks, match="the mask"):
            text_lengths(wrong, 8)


def test_a_mask_that_is_no_padding_runs_dense_and_is_told() -> None:
    case = TINY["hunyuan_video"]
    pipe = case.build()

    def hide_the_first_token(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def change(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or value.dtype != torch.bool:
                return value
            changed = value.clone()
            changed[..., 0] = False
            return changed

        return tuple(map(change, args)), {name: change(value) for name, value in kwargs.items()}

    both = (pipe.transformer.transformer_blocks, pipe.transformer.single_transformer_blocks)
    hooks = [b.register_forward_pre_hook(hide_the_first_token, with_kwargs=True) for blocks in both for b in blocks]
    plain = case.run(pipe)
    assert not torch.equal(plain, case.run(case.build()))
    with accel.enable(pipe, attention="pisa", density=0.25) as session, pytest.warns(AccelWarning, match="did nothing"):
        found = case.run(pipe)
    reasons = [entry["reason"] for entry in last(session)["fallbacks"]]
    assert reasons == ["the mask hides more than the padding of the text"]
    assert torch.equal(found, plain)
    # Of one block alone, the mask of its neighbours says nothing.
    for hook in hooks[1:]:
        hook.remove()
    with accel.enable(pipe, attention="pisa", density=0.25, dense_steps=0.0, dense_layers=0) as session:
        case.run(pipe, num_inference_steps=2)
    (fallback,) = last(session)["fallbacks"]
    assert (fallback["reason"], fallback["times"]) == (reasons[0], 2)


def test_a_processor_that_was_replaced_since_is_told() -> None:
    case = TINY["wan"]
    pipe = case.build()
    with accel.enable(pipe, attention="pisa", density=0.5, dense_layers=0) as session:
        attention = pipe.transformer.blocks[0].attn1
        attention.processor = attention.processor.original
        with pytest.warns(AccelWarning, match="1 attentions, first blocks.0.attn1, got another"):
            case.run(pipe)
    run = last(session)
    assert run["notes"] and 0 < run["methods"]["pisa"]["sparse"] == run["methods"]["pisa"]["attention_calls"] * 3 // 4


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"attention": "pisa", "dense_layers": 50}, "dense_layers=50 leaves it none of the transformer's blocks"),
        ({"attention": "pisa", "dense_steps": 1.0}, "dense_steps=1.0 leaves it none of 8 steps"),
        ({"attention": "adaspa", "search_steps": (0.99,)}, "did nothing"),
    ],
)
def test_settings_that_leave_nothing_are_named(setting: dict[str, Any], line: str) -> None:
    case = TINY["wan"]
    pipe = case.build()
    with accel.enable(pipe, **setting), pytest.warns(AccelWarning, match=line):
        case.run(pipe)


def test_too_few_tokens_run_dense_and_are_told() -> None:
    case = TINY["wan"]
    pipe = case.build()
    small = {"num_frames": 1}
    plain = case.run(pipe, **small)
    with (
        accel.enable(pipe, attention="pisa", block_size=128) as session,
        pytest.warns(AccelWarning, match="pisa was on and did nothing: .* tokens are fewer than two blocks of 128"),
    ):
        found = case.run(pipe, **small)
    assert torch.equal(found, plain)
    assert last(session)["methods"]["pisa"]["sparse"] == 0


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"attention": "pisa", "density": 0.0}, "density=0.0 is not possible: .* than 0$"),
        ({"attention": "adaspa", "search_steps": (0.2, 1.0)}, "search_steps=.* is not possible"),
        ({"attention": "pisa", "density": 1.5}, r"density=1.5 is not possible: .* \(nearest: 1.0\)"),
        ({"attention": "pisa", "block_size": 48}, "block_size=48 is not possible"),
        ({"attention": "pisa", "router": "best"}, "router='best' is not possible"),
        ({"attention": "pisa", "tiling": True}, "tiling=True is not possible: .* 'call', 'forward' or 'none'"),
        ({"attention": "adaspa", "tails": "none"}, "no active method has a setting 'tails'.*nearest: 'tail'"),
        ({"attention": "adaspa", "router": "mean"}, "'router' is a setting of pisa, which is not on"),
        (
            {"attention": "pisa", "search_steps": (0.5,)},
            r"^pisa: search_steps=\(0.5,\) is read by router='search' alone, and the router is 'mean': leave it out",
        ),
        ({"attention": "pisa", "search_steps": (0.25, 0.6), "router": "threshold"}, "the router is 'threshold'"),
        (
            {"attention": "adaspa", "head_adaptive": False, "recall": 0.8},
            "^adaspa: recall=0.8 is read by head_adaptive=True alone: leave it out or switch that on$",
        ),
    ],
)
def test_refusals(setting: dict[str, Any], line: str) -> None:
    pipe = TINY["wan"].build()
    with pytest.raises(AccelError, match=line):
        accel.enable(pipe, **setting)
    # Nothing is half done.
    accel.enable(pipe, attention="pisa").disable()


def test_published_values_fill_what_is_not_given() -> None:
    video = PISAConfig().resolved(families()["wan"])
    image = PISAConfig(density=0.5).resolved(families()["flux"])
    assert (video.density, video.router, video.dense_layers, video.dense_steps) == (0.125, "mean", 1, 0.25)
    assert video.search_steps is None
    assert PISAConfig(router="search").resolved(families()["flux"]).search_steps == (0.25, 0.6)
    assert (image.density, image.router, image.dense_layers, image.dense_steps) == (0.5, "covariance", 4, 0.0)
    # 3.5 medium has a density of its own, and nothing else was published for it.
    medium = PISAConfig().resolved(families()["sd3"])
    assert (medium.density, medium.router, medium.dense_layers, medium.dense_steps) == (0.3, "covariance", 4, 0.0)
    hunyuan = PISAConfig().resolved(families()["hunyuan_video"])
    assert (hunyuan.density, hunyuan.dense_layers, hunyuan.dense_steps) == (0.125, 1, 0.2)
    ada = AdaSpaConfig().resolved(families()["wan"])
    assert (ada.density, ada.search_steps, ada.recall, ada.tail) == (0.2, (0.2, 0.6), 0.8, "none")


def test_settings_go_to_a_file_and_come_back(tmp_path: Path) -> None:
    config = AccelConfig(attention=AdaSpaConfig(search_steps=(0.1, 0.5), density=0.3))
    config.save_pretrained(tmp_path)
    assert AccelConfig.from_pretrained(tmp_path) == config


def test_threshold_in_deviations() -> None:
    assert deviations(0.5) == pytest.approx(0.0)
    assert deviations(0.159) == pytest.approx(1.0, abs=0.01)
    assert deviations(1.0) == -float("inf")
    assert 8 < deviations(1e-17) < 9


def test_the_blocks_of_vace_that_make_hints_are_served_and_counted() -> None:
    case = TINY["wan_vace"]
    pipe: Any = case.build()
    layers, hints = len(pipe.transformer.blocks), pipe.transformer.config.vace_layers
    assert hints == [0, 2]
    with accel.enable(pipe, attention="pisa", density=0.5, dense_steps=0.25, dense_layers=1) as session:
        case.run(pipe)
    report = last(session)["methods"]["pisa"]
    assert report["attention_calls"] == 2 * 8 * (layers + len(hints))
    # The hint of the first block, which is dense, is made by a block that is dense too.
    assert report["sparse_by_step"] == [0, 0] + [2 * (layers - 1 + len(hints) - 1)] * 6
    assert not last(session)["fallbacks"]


def test_a_cache_never_touches_the_blocks_that_make_hints() -> None:
    case = TINY["wan_vace"]
    pipe: Any = case.build()
    calls: list[int] = []
    for block in pipe.transformer.vace_blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    with accel.enable(pipe, attention="adaspa", density=0.5, cache="delta", dense_final_steps=0.1) as session:
        case.run(pipe)
    assert len(calls) == 2 * 8 * 2
    assert last(session)["methods"]["delta"]["block_calls"] == 2 * 8 * len(pipe.transformer.blocks)


@pytest.mark.parametrize("setting", [{"attention": "pisa", "dense_steps": 0.0}, {"attention": "adaspa"}])
def test_fewer_tokens_than_were_asked_for_stay_dense_without_a_warning(setting: dict[str, Any]) -> None:
    case = TINY["wan"]
    pipe = case.build()
    plain = case.run(pipe)
    tokens = case.tokens
    with accel.enable(pipe, **setting, min_tokens=tokens + 1) as session:
        assert torch.equal(case.run(pipe), plain)
    (report,) = last(session)["methods"].values()
    assert report["sparse"] == report["searched"] == 0 < report["attention_calls"]
    assert last(session)["notes"] == []
    assert f"attention calls were dense: {tokens:,} tokens, and min_tokens={tokens + 1}" in str(session.summary())
    with accel.enable(pipe, **setting, min_tokens=tokens) as session:
        case.run(pipe)
    (report,) = last(session)["methods"].values()
    assert report["sparse"] > 0
