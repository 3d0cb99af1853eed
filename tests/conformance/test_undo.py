"""Undo in parts: hooks that share a module, copies of an enabled pipeline, an installation that fails half-way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import accel
from accel.methods.delta import DeltaCache
from accel.runtime.hooks import HookSet
from tests.conformance.cases import METHODS
from tests.conformance.snapshot import snapshot
from tests.tiny_pipelines import TINY

METHOD = METHODS["delta"]


def test_interceptors_of_one_module_come_off_in_any_order() -> None:
    module = nn.Linear(2, 2)
    before = sorted(vars(module))
    value = torch.ones(1, 2)
    plain = module(value)
    hooks = HookSet("owner")

    def add(amount: float) -> Callable[..., Any]:
        return lambda proceed, args, kwargs: proceed(*args, **kwargs) * 10 + amount

    first, second = hooks.add(module, add(1.0)), hooks.add(module, add(2.0))
    torch.testing.assert_close(module(value), (plain * 10 + 1.0) * 10 + 2.0)
    first()
    torch.testing.assert_close(module(value), plain * 10 + 2.0)
    second()
    assert torch.equal(module(value), plain)
    hooks.remove()
    assert sorted(vars(module)) == before


def test_the_outermost_interceptor_stays_in_front_whoever_comes_first() -> None:
    module = nn.Linear(2, 2)
    seen: list[str] = []
    hooks = HookSet("owner")

    def noting(name: str) -> Callable[..., Any]:
        def note(proceed: Any, args: Any, kwargs: Any) -> Any:
            seen.append(name)
            return proceed(*args, **kwargs)

        return note

    hooks.add(module, noting("first"))
    undo = hooks.add(module, noting("outermost"), outermost=True)
    hooks.add(module, noting("last"))
    module(torch.ones(1, 2))
    assert seen == ["outermost", "last", "first"]
    undo()
    seen.clear()
    module(torch.ones(1, 2))
    assert seen == ["last", "first"]
    hooks.remove()


def test_a_module_that_was_compiled_while_hooked_keeps_its_compiled_call() -> None:
    module = nn.Linear(2, 2)
    hooks = HookSet("owner")
    hooks.add(module, lambda proceed, args, kwargs: proceed(*args, **kwargs))
    module.compile(backend="eager")
    theirs = vars(module)["_compiled_call_impl"]
    assert hooks.lost() == [module]
    hooks.reinstall(module)
    assert hooks.lost() == []
    hooks.remove()
    assert vars(module)["_compiled_call_impl"] is theirs


def test_a_failing_installation_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = TINY["wan"]
    pipe = case.build()
    plain = case.run(pipe)
    before = snapshot(pipe)
    install = DeltaCache.install

    def failing(self: DeltaCache) -> list[Callable[[], None]]:
        install(self)
        raise accel.AccelError("refused by the test")

    monkeypatch.setattr(DeltaCache, "install", failing)
    with pytest.raises(accel.AccelError, match="refused by the test"):
        accel.enable(pipe, **METHOD.active)
    assert snapshot(pipe) == before
    assert torch.equal(case.run(pipe), plain)


def test_copies_of_an_enabled_pipeline_are_plain() -> None:
    case = TINY["wan"]
    pipe = case.build()
    plain = case.run(pipe)
    with accel.enable(pipe, **METHOD.active) as session:
        twin = copy.deepcopy(pipe)
        runs = len(session.summary().to_dict()["runs"])
        assert torch.equal(case.run(twin), plain)
        assert len(session.summary().to_dict()["runs"]) == runs, "the copy's run is none of this session's"
        assert twin.transformer.cache_context.__self__ is twin.transformer


def test_an_enabled_pipeline_saves_as_a_plain_one(tmp_path: Any) -> None:
    case = TINY["wan"]
    pipe = case.build()
    case.run(pipe)  # A tokenizer remembers how it was last called, and saves that.
    pipe.save_pretrained(tmp_path / "plain")
    with accel.enable(pipe, **METHOD.active):
        case.run(pipe)
        pipe.save_pretrained(tmp_path / "enabled")
    names = sorted(path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*") if path.is_file())
    assert names == sorted(
        path.relative_to(tmp_path / "enabled") for path in (tmp_path / "enabled").rglob("*") if path.is_file()
    )
    for name in names:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "enabled" / name).read_bytes()
