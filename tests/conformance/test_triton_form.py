"""A whole pipeline on the Triton forms of the operations, in Triton's interpreter."""

from __future__ import annotations

import pytest

import accel
from accel.kernels.forms import use
from tests.conformance.cases import METHODS, MethodCase
from tests.tiny_pipelines import TINY


@pytest.mark.interpreter
@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
@pytest.mark.parametrize("name", ["wan", "flux"])
def test_the_triton_form_gives_what_the_cpu_form_gives(name: str, method: MethodCase) -> None:
    case = TINY[name]
    pipe = case.build()
    results = {}
    for form in ("cpu", "triton"):
        with use(form), accel.enable(pipe, **method.active) as session:
            results[form] = case.run(pipe)
        assert method.acted(session.summary().to_dict()["runs"][0]["methods"][method.name])
    apart = (results["cpu"] - results["triton"]).norm() / results["cpu"].norm()
    assert apart <= method.forms_apart
