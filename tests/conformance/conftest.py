"""The grid of methods and families; one built pipeline and one plain result per family, shared by all tests.

Each test takes about half of the families, or every one if it is marked so, each with one of the methods in turn: a run
of the tests meets every method and every family a few times. `--grid=whole` takes every family with every method.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any
from zlib import crc32

import pytest
import torch

from accel.errors import AccelWarning
from tests.conformance.cases import FAMILIES, METHODS
from tests.tiny_pipelines import TinyCase


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("record") is not None:
        from tests.conformance.record import Record

        config.pluginmanager.register(Record(config.getoption("record")), "record")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("grid") != "whole":
        left_out = [item for item in items if item.get_closest_marker("whole_grid")]
        items[:] = [item for item in items if not item.get_closest_marker("whole_grid")]
        config.hook.pytest_deselected(items=left_out)


@cache
def _built(name: str) -> tuple[Any, torch.Tensor]:
    pipe = FAMILIES[name].build()
    return pipe, FAMILIES[name].run(pipe)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = {"method", "case"} & set(metafunc.fixturenames)
    if wanted != {"method", "case"}:
        return
    marker = metafunc.definition.get_closest_marker("methods_with")
    traits = marker.kwargs if marker else {}
    methods = sorted(name for name, m in METHODS.items() if all(getattr(m, k) == v for k, v in traits.items()))
    # Names decide what is in the sample, so that a new test or family changes no other.
    name = metafunc.function.__name__
    start = crc32(name.encode())
    pairs = []
    for place, family in enumerate(sorted(FAMILIES)):
        there = [case for method in methods if (case := METHODS[method].on(FAMILIES[family].family)) is not None]
        if metafunc.config.getoption("grid") != "whole":
            there = [there[(start + place) % len(there)]]
            if not metafunc.definition.get_closest_marker("every_family") and crc32(f"{name} {family}".encode()) % 2:
                continue
        pairs += [(case, FAMILIES[family]) for case in there]
    metafunc.parametrize(("method", "case"), pairs, ids=[f"{family.name}-{method.name}" for method, family in pairs])


@pytest.fixture(autouse=True)
def _without_predictions() -> Iterator[None]:
    """Quantizations say beforehand what is emulated here and what gains no time; tests of theirs ask for it."""
    with warnings.catch_warnings():
        texts = ("emulated on", "run in INT8 here", "decoded in each product", "no fast instructions", "too few to gain time")
        for text in texts:
            warnings.filterwarnings("ignore", f".*{text}", AccelWarning)
        yield


@pytest.fixture
def pipe(case: TinyCase) -> Any:
    """The family's pipeline, which has run once; a test gives it back as it found it."""
    return _built(case.name)[0]


@pytest.fixture
def plain(case: TinyCase) -> torch.Tensor:
    """What the pipeline gives without Accel."""
    return _built(case.name)[1]
