"""The built-in model under acceleration: it acts, and comes off without a trace."""

from __future__ import annotations

import torch

import accel
from tests.conformance.cases import METHODS
from tests.conformance.snapshot import assert_copies, snapshot


def test_the_built_in_model_before_during_and_after() -> None:
    pipe = accel.load_pipeline("demo", size="quick")
    pipe.set_progress_bar_config(disable=True)

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        call = {"num_inference_steps": 8, "generator": generator, "output_type": "pt"}
        return pipe("a red circle moving left on a plain black background", **call).frames

    plain = run()
    before = snapshot(pipe)
    for method in METHODS.values():
        with accel.enable(pipe, **method.active) as session:
            first, second = run(), run()
        assert method.acted(session.summary().to_dict()["runs"][0]["methods"][method.name])
        assert torch.equal(first, second)
        assert not torch.equal(first, plain)
        assert snapshot(pipe) == before
        assert torch.equal(run(), plain)
        assert_copies(pipe.transformer)
