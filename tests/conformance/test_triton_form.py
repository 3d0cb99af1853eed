"""A whole pipeline on the Triton forms of the operations, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest

import accel
from accel.kernels.forms import use
from tests.conformance.cases import METHODS
from tests.tiny_pipelines import TINY


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("name", "method", "call"),
    [
        # The interpreter is slow.
        pytest.param("wan", "delta", {"num_inference_steps": 3}, id="wan-delta"),
        pytest.param("flux", "delta", {"num_inference_steps": 3}, id="flux-delta"),
        pytest.param("wan", "adaspa", {"num_inference_steps": 3, "guidance_scale": 1.0}, id="wan-adaspa"),
        pytest.param("flux", "pisa", {"num_inference_steps": 3}, id="flux-pisa"),
        # The first step that can be left out is the fourth, and the last is computed.
        pytest.param("wan", "tdc", {"num_inference_steps": 5, "height": 32, "width": 32}, id="wan-tdc"),
    ],
)
def test_the_triton_form_gives_what_the_cpu_form_gives(name: str, method: str, call: dict[str, Any]) -> None:
    case, entry = TINY[name], METHODS[method]
    pipe = case.build()
    results = {}
    for form in ("cpu", "triton"):
        with use(form), accel.enable(pipe, **entry.active) as session:
            results[form] = case.run(pipe, **call)
        assert entry.acted(session.summary().to_dict()["runs"][0]["methods"][method])
    apart = (results["cpu"] - results["triton"]).norm() / results["cpu"].norm()
    assert apart <= entry.forms_apart


@pytest.mark.interpreter
@pytest.mark.filterwarnings("ignore:.*emulated on:accel.errors.AccelWarning")
def test_mixed_precision_on_the_triton_forms() -> None:
    """Both formats, the choice by errors, the conversion of weights and the measuring, in a whole pipeline of which
    four linears are quantized: the interpreter takes seconds for each."""
    case = TINY["wan"]
    pipe = case.build()
    left = ("*.attn2", "*.to_k", "*.to_v", "*.to_out.0", "*.ffn.net.0.proj", "blocks.2", "blocks.3")
    config = accel.MixedPrecisionConfig(target_bits=7.0, modules_to_not_convert=left, emulate=True)
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": 16, "width": 16, "num_frames": 1}
    results, formats = {}, {}
    plain = case.run(pipe, **call)
    for form in ("cpu", "triton"):
        with use(form), accel.enable(pipe, quantize=config) as session:
            results[form] = case.run(pipe, **call)
        formats[form] = session.summary().to_dict()["runs"][0]["methods"]["mixed"]["calls_by_step"]
    assert formats["triton"] == formats["cpu"] == {"int8": [4, 2], "nvfp4": [0, 2]}
    # Rounding can turn the last bit of a sum into another code, which would be seen; here it turns none.
    apart = (results["cpu"] - results["triton"]).norm()
    assert apart <= 1e-6 * results["cpu"].norm() and apart <= 1e-4 * (results["cpu"] - plain).norm()
