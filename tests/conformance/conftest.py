"""The grid of methods and families; one built pipeline and one plain result per family, and one accelerated result per
method and family, shared by all tests of a process.

A run of the tests takes the sample of `tests.conformance.sample`; `--grid=whole` takes every family with every method.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

import accel
from accel.errors import AccelWarning
from accel.methods.sparse_call import text_lengths
from accel.pipelines.attention import AttentionCall
from tests.conformance.cases import FAMILIES, METHODS, MethodCase
from tests.conformance.sample import TESTS, pairs, sample
from tests.tiny_pipelines import TinyCase


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("record") is not None:
        from tests.conformance.record import Record

        worker = getattr(config, "workerinput", {}).get("workerid")
        config.pluginmanager.register(Record(config.getoption("record"), worker), "record")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("grid") != "whole":
        left_out = [item for item in items if item.get_closest_marker("whole_grid")]
        items[:] = [item for item in items if not item.get_closest_marker("whole_grid")]
        config.hook.pytest_deselected(items=left_out)


@cache
def _built(name: str) -> tuple[Any, torch.Tensor]:
    pipe = FAMILIES[name].build()
    return pipe, FAMILIES[name].run(pipe)


@cache
def _accelerated(name: str, method: str) -> torch.Tensor:
    case, entry = FAMILIES[name], METHODS[method].on(FAMILIES[name].family)
    assert entry is not None
    pipe, _ = _built(name)
    with accel.enable(pipe, **entry.active):
        return case.run(pipe)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not {"method", "case"} <= set(metafunc.fixturenames):
        return
    test = metafunc.function.__name__
    cells = pairs(test)
    if metafunc.config.getoption("grid") != "whole" and test in TESTS:
        cells = [(method, case) for method, case in cells if (test, method.name, case.name) in sample()]
    metafunc.parametrize(("method", "case"), cells, ids=[f"{case.name}-{method.name}" for method, case in cells])


@pytest.fixture(autouse=True)
def _without_predictions() -> Iterator[None]:
    """Quantizations say beforehand what is emulated here and what gains no time; tests of theirs ask for it."""
    with warnings.catch_warnings():
        products = ("emulated on", "run in INT8 here", "decoded in each product", "no fast instructions")
        for text in (*products, "too few to gain time"):
            warnings.filterwarnings("ignore", f".*{text}", AccelWarning)
        yield


@pytest.fixture
def masks_read(monkeypatch: pytest.MonkeyPatch) -> list[AttentionCall]:
    """The calls of which a sparse attention has read the mask, for which it waits for the device."""
    found: list[AttentionCall] = []

    def read(call: AttentionCall, tokens: int) -> torch.Tensor:
        found.append(call)
        return text_lengths(call, tokens)

    monkeypatch.setattr("accel.methods.sparse_attention.text_lengths", read)
    return found


@pytest.fixture
def pipe(case: TinyCase) -> Any:
    """The family's pipeline, which has run once; a test gives it back as it found it."""
    return _built(case.name)[0]


@pytest.fixture
def plain(case: TinyCase) -> torch.Tensor:
    """What the pipeline gives without Accel."""
    return _built(case.name)[1]


@pytest.fixture
def accelerated(method: MethodCase, case: TinyCase, pipe: Any) -> torch.Tensor:
    """What the pipeline gives with the method on."""
    return _accelerated(case.name, method.name)
