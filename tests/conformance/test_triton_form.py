"""A whole pipeline on the Triton forms of the operations, in Triton's interpreter."""

from __future__ import annotations

import pytest

import accel
from accel.kernels.forms import use
from tests.conformance.cases import METHODS
from tests.tiny_pipelines import TINY


@pytest.mark.interpreter
@pytest.mark.parametrize(("name", "method"), [("wan", "delta"), ("flux", "delta"), ("wan", "adaspa"), ("flux", "pisa")])
def test_the_triton_form_gives_what_the_cpu_form_gives(name: str, method: str) -> None:
    case, entry = TINY[name], METHODS[method]
    pipe = case.build()
    results = {}
    for form in ("cpu", "triton"):
        with use(form), accel.enable(pipe, **entry.active) as session:
            results[form] = case.run(pipe, num_inference_steps=3)  # the interpreter is slow
        assert entry.acted(session.summary().to_dict()["runs"][0]["methods"][method])
    apart = (results["cpu"] - results["triton"]).norm() / results["cpu"].norm()
    assert apart <= entry.forms_apart
