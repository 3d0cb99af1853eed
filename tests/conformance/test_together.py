"""Methods beside each other: all of them act and count honestly, none disturbs another, and all come off together."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import accel
from accel import AccelConfig
from accel.errors import AccelWarning
from accel.methods.base import MethodConfig, registered
from accel.methods.rules import Place, checked
from accel.pipelines.families import families
from tests.conformance.cases import METHODS
from tests.conformance.snapshot import snapshot
from tests.tiny_pipelines import TINY, TinyCase, add_lora

# Settings with which each of them has something to do in eight steps of a tiny pipeline, beside any other.
BESIDE: dict[str, MethodConfig] = {
    "adaspa": accel.AdaSpaConfig(density=0.5, search_steps=(0.0, 0.5)),
    "delta": accel.DeltaCacheConfig(),
    "flashblock": accel.FlashBlockConfig(interval=5),
    "mixed": accel.MixedPrecisionConfig(emulate=True),
    "pisa": accel.PISAConfig(density=0.5, dense_layers=1),
    "tdc": accel.TemporalDeltaCacheConfig(threshold=10.0, max_skips=2),
}
FAMILIES = ("wan", "flux", "cogvideox", "wan22", "hunyuan_video")


def together(*names: str) -> AccelConfig:
    """The methods in one configuration; without a tail where a prior stands for the blocks that are not exact."""
    prior = any(registered()[name].method.slot == "prior" for name in names)
    configs = []
    for name in names:
        config = BESIDE[name]
        if prior and "tail" in type(config).model_fields:
            config = config.model_copy(update={"tail": "none"})
        configs.append(config)
    return in_one(*configs)


def in_one(*configs: MethodConfig) -> AccelConfig:
    keywords: dict[str, list[MethodConfig]] = {}
    for config in configs:
        keywords.setdefault(config.keyword, []).append(config)
    return AccelConfig(**{word: found if word == "cache" else found[0] for word, found in keywords.items()})


def stand_together(names: tuple[str, ...]) -> bool:
    single = [BESIDE[name].keyword for name in names if BESIDE[name].keyword != "cache"]
    if len(single) > len(set(single)):
        return False
    try:
        checked(together(*names).methods, Place(families()["wan"]))
    except accel.AccelError:
        return False
    return True


COMPANIES = [
    names for size in (2, 3) for names in itertools.combinations(sorted(BESIDE), size) if stand_together(names)
]
CASES = [
    pytest.param(names, FAMILIES[place % len(FAMILIES)], id=f"{'-'.join(names)}-{FAMILIES[place % len(FAMILIES)]}")
    for place, names in enumerate(COMPANIES)
]
THREE = ("adaspa", "flashblock", "tdc")


_BUILT: dict[str, tuple[TinyCase, Any, torch.Tensor]] = {}


def built(name: str) -> tuple[TinyCase, Any, torch.Tensor]:
    """A pipeline and what it gives plainly; every test gives it back as it found it."""
    if name not in _BUILT:
        pipe = TINY[name].build()
        _BUILT[name] = TINY[name], pipe, TINY[name].run(pipe)
    return _BUILT[name]


@pytest.fixture(autouse=True)
def _given_back() -> Iterator[None]:
    """So that one test that fails is one, and not all behind it."""
    yield
    for _, pipe, _ in _BUILT.values():
        accel.disable(pipe)


def last(session: Any) -> dict[str, Any]:
    return session.summary().to_dict()["runs"][-1]


def layers(words: str) -> set[int]:
    """The numbers that "0, 2-5" stands for."""
    found: set[int] = set()
    for part in filter(None, words.split(", ")):
        first, _, end = part.partition("-")
        found |= set(range(int(first), int(end or first) + 1))
    return found


def calls(run: dict[str, Any], name: str) -> dict[tuple[str, str, int], dict[str, set[int]]]:
    """By denoiser, branch and step, what a method said of which blocks."""
    found: dict[tuple[str, str, int], dict[str, set[int]]] = {}
    for denoiser, branches in run["blocks"][name].items():
        for branch, said in branches.items():
            for what, steps in said.items():
                for step, words in enumerate(steps):
                    found.setdefault((denoiser, branch, step), {})[what] = layers(words)
    return found


def test_every_method_is_in_company() -> None:
    slots = {name: registered()[name].method.slot for name in BESIDE}
    assert {*slots.values()} == {entry.method.slot for entry in registered().values()}, "one of each slot at the least"
    for size in (2, 3):
        every = itertools.combinations(sorted(BESIDE), size)
        wanted = [names for names in every if len({slots[name] for name in names}) == size]
        assert [names for names in COMPANIES if len(names) == size] == wanted, "only a shared slot keeps them apart"


@pytest.mark.parametrize(("names", "family"), CASES)
def test_all_act_count_honestly_and_come_off(names: tuple[str, ...], family: str) -> None:
    case, pipe, plain = built(family)
    before = snapshot(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelWarning)
        warnings.filterwarnings("ignore", "mixed: ", AccelWarning)
        with accel.enable(pipe, together(*names)) as session:
            first, second = case.run(pipe), case.run(pipe)
    assert torch.equal(first, second)
    assert 0 < (first - plain).norm() < max(0.3, *(METHODS[name].error for name in names)) * plain.norm()
    assert snapshot(pipe) == before
    assert torch.equal(case.run(pipe), plain)
    run = last(session)
    for name in names:
        report = run["methods"][name]
        assert report.get("density") is None or 0 < report["density"] < 1
        assert METHODS[name].acted(report), name
    by_slot = {registered()[name].method.slot: calls(run, name) for name in names}
    if "blocks" in by_slot and "attention" in by_slot:
        for place, said in by_slot["blocks"].items():
            attended = set().union(*by_slot["attention"].get(place, {}).values())
            assert attended == said["computed"], f"{place}: attention runs in the blocks that are computed alone"
    if "prior" in by_slot:
        _assert_fresh(by_slot["prior"], "refreshed", BESIDE["flashblock"].model_dump()["interval"])
    if "blocks" in by_slot:
        settings = next(BESIDE[name].model_dump() for name in names if registered()[name].method.slot == "blocks")
        _assert_fresh(by_slot["blocks"], "computed", settings.get("interval") or settings["max_skips"] + 1)
    if "adaspa" in names and "blocks" in by_slot:
        searched = {place[2] for place, said in by_slot["attention"].items() if said.get("searched")}
        assert 0 in searched
        assert all(not said.get("reused") for place, said in by_slot["blocks"].items() if place[2] in {*searched, 4})


def _assert_fresh(slot: dict[tuple[str, str, int], dict[str, set[int]]], computes: str, interval: int) -> None:
    """What is kept is never reused at an age of the interval or more, and never before it was computed."""
    computed: dict[tuple[str, str, int], int] = {}
    for (denoiser, branch, step), said in sorted(slot.items(), key=lambda item: item[0][2]):
        for layer in said.get("reused", ()):
            assert 0 < step - computed[denoiser, branch, layer] < interval
        computed |= {(denoiser, branch, layer): step for layer in said.get(computes, ())}


@pytest.mark.parametrize(
    ("attention", "family", "call"),
    [
        ("adaspa", "wan", {}),
        ("flashblock", "wan", {}),
        ("flashblock", "anyflow_far", {"height": 32, "width": 32, "num_inference_steps": 3}),
    ],
)
def test_a_probe_block_stays_dense(attention: str, family: str, call: dict[str, Any]) -> None:
    """Its change decides on all others, so that nothing may be approximated in its attention."""
    case, pipe, _ = built(family)
    config = AccelConfig(**{BESIDE[attention].keyword: BESIDE[attention]})
    probing = accel.TemporalDeltaCacheConfig(units="probe", threshold=0.0)
    found = {}
    for caches in (config.cache, (*config.cache, probing)):
        with accel.enable(pipe, AccelConfig(attention=config.attention, cache=caches)) as session:
            case.run(pipe, **call)
        approximated: set[int] = set()
        for said in calls(last(session), attention).values():
            approximated |= said.get("sparse", set()) | said.get("reused", set())
        found[len(caches)] = approximated
    without, beside = (found[size] for size in sorted(found))
    assert without == {0, 1, 2, 3} and beside == {1, 2, 3}


@pytest.mark.parametrize("names", [("delta", "pisa"), THREE], ids="-".join)
@pytest.mark.parametrize("seed", [1, 2])
def test_undo_in_any_order_and_twice(names: tuple[str, ...], seed: int) -> None:
    case, pipe, plain = built("wan")
    before = snapshot(pipe)
    session = accel.enable(pipe, together(*names))
    case.run(pipe)
    random.Random(seed).shuffle(session._undo)
    undo = list(session._undo)
    session.disable()
    assert snapshot(pipe) == before
    for step in undo:
        step()
    session.disable()
    accel.disable(pipe)
    assert snapshot(pipe) == before
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("names", [("pisa", "tdc"), THREE], ids="-".join)
def test_an_exception_in_the_middle_leaves_all_of_them_clean(names: tuple[str, ...]) -> None:
    case, pipe, plain = built("wan")
    before = snapshot(pipe)

    def fail(_pipe: Any, step: int, _timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            raise RuntimeError("stopped by the test")
        return kept

    with pytest.raises(RuntimeError, match="stopped by the test"), accel.enable(pipe, together(*names)) as session:
        expected = case.run(pipe)
        with pytest.raises(RuntimeError, match="stopped by the test"):
            case.run(pipe, seed=9, callback_on_step_end=fail)
        assert last(session)["state"] == "broken off"
        assert torch.equal(case.run(pipe), expected)
        case.run(pipe, seed=9, callback_on_step_end=fail)
    assert snapshot(pipe) == before
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("names", [("pisa", "tdc"), THREE], ids="-".join)
@pytest.mark.parametrize("loosened", ["before", "after"])
def test_a_lora_and_a_hook_that_came_in_between_stay(names: tuple[str, ...], loosened: str) -> None:
    """And go when the user takes them off, before or after the methods."""
    case, pipe, plain = built("wan")
    before = snapshot(pipe)
    called: list[int] = []
    session = accel.enable(pipe, together(*names))
    add_lora(pipe)
    handle = pipe.transformer.blocks[1].register_forward_hook(lambda *_: called.append(1))
    case.run(pipe)
    assert called and all(METHODS[name].acted(last(session)["methods"][name]) for name in names)

    def take_off() -> None:
        handle.remove()
        pipe.transformer.unload_lora()

    if loosened == "before":
        take_off()
        session.disable()
    else:
        session.disable()
        called.clear()
        with_lora = case.run(pipe)
        assert len(called) == 16 and not torch.equal(with_lora, plain)
        take_off()
    assert torch.equal(case.run(pipe), plain)
    assert snapshot(pipe).processors == before.processors and snapshot(pipe).pipeline == before.pipeline


@pytest.mark.parametrize("when", ["before", "while enabled"])
def test_model_offload_beside_several(when: str) -> None:
    case = TINY["wan22"]
    pipe = case.build()
    plain = case.run(pipe)
    config = together("adaspa", "delta")
    with accel.enable(pipe, config):
        accelerated = case.run(pipe)
    if when == "before":
        pipe.enable_model_cpu_offload(device="cpu")
    session = accel.enable(pipe, config)
    if when != "before":
        pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(case.run(pipe), accelerated)
    assert all(METHODS[name].acted(last(session)["methods"][name]) for name in ("adaspa", "delta"))
    session.disable()
    assert torch.equal(case.run(pipe), plain)
    pipe.remove_all_hooks()
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("name", sorted(name for name, case in METHODS.items() if case.idle is not None))
def test_a_method_that_was_on_and_did_nothing_is_named(name: str) -> None:
    """Alone, and beside one that did something, of which nothing is said."""
    case, pipe, _ = built("wan")
    idle = METHODS[name].idle
    assert idle is not None
    other = next(found for found in ("delta", "pisa") if stand_together((name, found)))
    for config in (in_one(idle), in_one(idle, BESIDE[other])):
        with accel.enable(pipe, config) as session, pytest.warns(AccelWarning, match="was on and did nothing") as told:
            case.run(pipe)
        lines = [str(warning.message) for warning in told if "did nothing" in str(warning.message)]
        assert len(lines) == 1 and lines[0].startswith(f"{name} was on and did nothing: ")
        assert lines[0] in str(session.summary()) and lines[0] in last(session)["notes"]
        assert not METHODS[name].acted(last(session)["methods"][name])
