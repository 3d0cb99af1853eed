"""One built pipeline and one plain result per family, shared by all tests of a session."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests.conformance.cases import FAMILIES, METHODS, MethodCase
from tests.tiny_pipelines import TinyCase


@cache
def _built(name: str) -> tuple[Any, torch.Tensor]:
    pipe = FAMILIES[name].build()
    return pipe, FAMILIES[name].run(pipe)


@pytest.fixture(params=sorted(FAMILIES))
def case(request: pytest.FixtureRequest) -> TinyCase:
    return FAMILIES[request.param]


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> MethodCase:
    return METHODS[request.param]


@pytest.fixture
def pipe(case: TinyCase) -> Any:
    """The family's pipeline, which has run once; a test gives it back as it found it."""
    return _built(case.name)[0]


@pytest.fixture
def plain(case: TinyCase) -> torch.Tensor:
    """What the pipeline gives without Accel."""
    return _built(case.name)[1]
