"""What can stand where and beside what: each rule refuses what it is about, in one line, before anything is there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import accel
from accel.config import AccelConfig
from accel.errors import AccelError
from accel.methods.adaspa import AdaSpaConfig
from accel.methods.base import Method, registered
from accel.methods.flashblock import FlashBlockConfig
from accel.methods.needs import Needs
from accel.methods.rules import Place, checked, pairs, refusal, remarks, standing
from accel.pipelines.facts import AttentionSite
from accel.pipelines.families import families
from accel.presets import PRESETS, preset
from tests.conformance.snapshot import snapshot
from tests.repository.tree import ROOT
from tests.tiny_pipelines import TINY

WAN = Place(families()["wan"], families()["wan"].pipelines["WanPipeline"])
HEADS = replace(WAN, heads=lambda: [("transformer.blocks.0.attn1", 64)])


def refused(place: Place, **asked: Any) -> str:
    with pytest.raises(AccelError) as refusal:
        checked(AccelConfig(**asked).methods, place)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_one_slot_holds_one_method() -> None:
    line = refused(WAN, cache=["tdc", "flashblock", "delta"])
    assert line == "tdc and delta both take the blocks: use one of the two"


def test_a_tail_and_a_prior_would_stand_for_the_same_blocks() -> None:
    line = "pisa with tail='hybrid' and flashblock would both stand for the blocks that are not exact: set tail='none'"
    assert refused(WAN, attention="pisa", cache=["delta", "flashblock"]) == line
    checked(AccelConfig(attention={"method": "pisa", "tail": "none"}, cache="flashblock").methods, WAN)
    checked(AccelConfig(attention="pisa", cache={"method": "flashblock", "interval": 1}).methods, WAN)


def test_settings_that_the_neighbour_decides_are_refused() -> None:
    cache = FlashBlockConfig(density=0.3, tiling="none")
    line = refused(WAN, attention="adaspa", cache=["tdc", cache])
    assert line.startswith("flashblock: density=0.3 is for flashblock alone,") and line.endswith("set density there")
    _, alone = checked(AccelConfig(cache=["tdc", cache]).methods, WAN)
    assert alone.model_dump() == {**cache.model_dump(), "dense_steps": 0.2, "block_size": 64}


def test_optional_methods_are_left_out_where_they_cannot_stand_and_others_refused() -> None:
    sana = Place(families()["sana"])
    both = AccelConfig(attention="pisa", cache="tdc").methods
    kept, left_out = standing(both, ["pisa"], sana)
    assert [config.method for config in kept] == ["tdc"]
    assert left_out == (f"pisa is left out: {refused(sana, attention='pisa')}",)
    with pytest.raises(AccelError, match="linear"):
        standing(both, ["tdc"], sana)
    # Of two that exclude each other, the one that is not optional stays, and of two optional ones the first.
    apart = AccelConfig(attention="pisa", cache="flashblock").methods
    for optional, stays in ((["pisa"], "flashblock"), (["flashblock"], "pisa"), (["flashblock", "pisa"], "pisa")):
        kept, (remark,) = standing(apart, optional, WAN)
        assert [config.method for config in kept] == [stays] and "would both stand for" in remark
    assert standing(both, ["pisa", "tdc"], WAN) == (checked(both, WAN), ())


@pytest.mark.parametrize("family", sorted(families()))
@pytest.mark.parametrize("name", PRESETS)
def test_presets_stand_on_every_family(name: str, family: str) -> None:
    kept, _ = standing(preset(name).methods, preset(name).optional, Place(families()[family]))
    assert "tdc" in {config.method for config in kept}


def test_what_a_preset_leaves_out_is_in_the_summary() -> None:
    pipe = TINY["sana"].build()
    with accel.enable(pipe, "fast") as session:
        (remark,) = session.summary().to_dict()["left_out"]
    assert remark.startswith("pisa is left out: pisa works on") and f"\n{remark}\n" in str(session.summary())


@pytest.mark.parametrize(("size", "takes"), [(8, True), (128, True), (136, False), (20, False), (4, False)])
def test_head_sizes(size: int, takes: bool) -> None:
    place = replace(WAN, heads=lambda: [("transformer.blocks.0.attn1", 64), ("transformer.blocks.1.attn1", size)])
    if takes:
        checked(AccelConfig(attention="pisa").methods, place)
    else:
        line = refused(place, attention="pisa", cache="tdc")
        assert "multiples of 8 up to 128; transformer.blocks.1.attn1 has heads of" in line and "'delta'" in line
    checked(AccelConfig(cache="tdc").methods, place)


def test_kinds_of_attention() -> None:
    """On a family whose attention reaches back to earlier chunks, say."""
    fact: Any = SimpleNamespace(kind="chunk", among_tokens=True)
    stack = replace(WAN.family.stacks[0], attention=(fact,))
    place = replace(WAN, family=replace(WAN.family, stacks=(stack,), beside={}))
    line = refused(place, attention="adaspa")
    assert line.startswith("adaspa works on self or joint attention, and that of Wan 2.1 and 2.2 is chunk attention; ")
    assert "cache='delta'" in line and line.endswith(" does without")
    cross = replace(stack, attention=(AttentionSite("attn2", "cross", "WanAttnProcessor", True),))
    bare = replace(WAN, family=replace(WAN.family, stacks=(cross,), beside={}), heads=list)
    assert "pisa needs softmax attention among image tokens, and" in refused(bare, attention="pisa")
    checked(AccelConfig(cache="delta").methods, bare)


def test_number_formats() -> None:
    """Formats that weights are only stored in say nothing of what is computed in."""
    for dtype in ("float16", "bfloat16", "float32", "float8_e4m3fn", "uint8", "None"):
        checked(AccelConfig(attention="pisa").methods, replace(HEADS, dtypes=(("transformer", dtype),)))
    wide = replace(HEADS, dtypes=(("transformer", "bfloat16"), ("transformer_2", "float64")))
    line = "pisa has kernels for float16, bfloat16 or float32, and transformer_2 is in float64: convert it, with "
    assert refused(wide, attention="pisa").startswith(line)
    checked(AccelConfig(cache="tdc").methods, wide)


def test_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registered()["delta"].method, "needs", Needs(guidance=("batched", "distilled")))
    line = refused(WAN, cache="delta")
    assert line.startswith("delta needs batched or distilled guidance, and this pipeline of wan has separate; ")
    assert "cache='tdc'" in line
    checked(AccelConfig(cache="delta").methods, Place(families()["flux"], families()["flux"].pipelines["FluxPipeline"]))


def test_an_order_of_tokens_that_the_family_does_not_allow() -> None:
    bound = replace(WAN, family=replace(WAN.family, free_order=None))
    for asked in (
        {"attention": {"method": "pisa", "tiling": "forward"}},
        {"cache": {"method": "flashblock", "tiling": "forward"}},
    ):
        assert "cannot tile once per forward" in refused(bound, **asked)
        checked(AccelConfig(**asked).methods, WAN)
    checked(AccelConfig(attention="pisa").methods, bound)


@pytest.mark.parametrize(
    ("name", "steps", "device", "expected"),
    [
        ("tdc", 7, "cpu", ["tdc brings little with fewer than 8 steps: 7 here"]),
        ("delta", 8, "cuda", []),
        ("flashblock", 7, "cpu", ["flashblock brings little with fewer than 8 steps: 7 here"]),
        ("flashblock", 8, "cuda", []),
        ("pisa", 4, "cuda", []),
        ("pisa", 4, "mps", ["pisa has fast kernels for cpu, cuda or xpu: on mps it runs slowly"]),
    ],
)
def test_few_steps_and_slow_devices_are_remarked(name: str, steps: int, device: str, expected: list[str]) -> None:
    entry = registered()[name]
    method: Any = SimpleNamespace(config=entry.config, needs=entry.method.needs)
    assert remarks(method, steps, device) == expected


@pytest.mark.parametrize(
    "asked",
    [
        {"cache": ["delta", "tdc"]},
        {"attention": "pisa", "cache": "flashblock"},
        {"attention": "adaspa", "cache": {"method": "flashblock", "density": 0.5}},
        {"attention": {"method": "pisa", "search_steps": (0.5,)}, "cache": "tdc"},
    ],
)
def test_nothing_is_made_before_the_rules_have_been_asked(asked: dict[str, Any], monkeypatch: Any) -> None:
    pipe = TINY["wan"].build()
    before = snapshot(pipe)
    monkeypatch.setattr(Method, "__init__", lambda *_: pytest.fail("a method was made"))
    with pytest.raises(AccelError):
        accel.enable(pipe, **asked)
    assert snapshot(pipe) == before


def test_float64_is_refused_before_anything_is_installed() -> None:
    pipe = TINY["wan"].build()
    pipe.transformer.to(torch.float64)
    with pytest.raises(AccelError, match=r"^adaspa has kernels for .*, and transformer is in float64: convert it"):
        accel.enable(pipe, attention="adaspa", cache="delta")
    accel.enable(pipe, cache="delta").disable()


def test_the_page_names_the_families_whose_tokens_are_not_tiled_once_per_forward() -> None:
    page = " ".join((ROOT / "docs" / "sparse_attention.md").read_text().split())
    told = page.partition("HunyuanVideo with a replaced first frame, ")[2].partition(" are refused.")[0]
    bound = set()
    for family in families().values():
        try:
            checked((AdaSpaConfig(tiling="forward"),), Place(family))
        except AccelError as error:
            if "cannot tile once per forward" in str(error):
                bound.add(family.title)
    assert bound == {family.title for family in families().values() if family.title in told} != set()


def test_every_pair_is_judged_on_every_family() -> None:
    for family in families().values():
        standing = sum(refusal([name], family) is None for name in registered())
        found = pairs(family)
        assert len(found) == standing * (standing - 1) // 2 > 0
        for one, other, why in found:
            same = registered()[one].method.slot == registered()[other].method.slot
            assert not same or (why is not None and why.endswith("use one of the two"))
    assert refusal(["adaspa", "flashblock", "tdc"], WAN.family) is None


def test_three_are_refused_where_two_of_them_are() -> None:
    """So that a table of pairs says everything."""
    for family in families().values():
        wrong = {(one, other) for one, other, why in pairs(family) if why}
        for one in {name for pair in pairs(family) for name in pair[:2]}:
            for two, three, _ in pairs(family):
                names = sorted({one, two, three})
                if len(names) == 3:
                    expected = any((a, b) in wrong for a in names for b in names)
                    assert (refusal(names, family) is not None) is expected
