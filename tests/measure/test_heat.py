"""Error, density and time of each block at each step, against the same figures computed by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import accel
from accel.config import AccelConfig
from accel.measure.heat import measured_heat
from accel.methods.delta import DeltaCacheConfig
from accel.methods.pisa import PISAConfig
from accel.methods.tdc import TemporalDeltaCacheConfig
from tests.tiny_pipelines import TINY

STEPS = 6
SPARSE = PISAConfig(density=0.25, dense_steps=0.2, dense_layers=1)
# Steps 3 and 5 are skipped, the last is computed.
SKIPPING = TemporalDeltaCacheConfig(threshold=100.0, max_skips=1, dense_final_steps=0.0)


class ByHand:
    """The calls of Wan's transformer, caught by torch's own hooks, and what plain blocks make of them afterwards.

    torch's hooks see the blocks that are computed, and beside them what the parent gives the first one and gets from
    the last, whether any was computed or not.
    """

    def __init__(self, transformer: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self._blocks = [copy.deepcopy(block) for block in transformer.blocks]
        self._hooks = [
            transformer.rope.register_forward_hook(self._began),
            transformer.patch_embedding.register_forward_hook(self._seen("tokens")),
            transformer.condition_embedder.register_forward_hook(self._seen("condition")),
            transformer.norm_out.register_forward_pre_hook(lambda module, given: self.calls[-1].update(last=given[0])),
        ]
        for index, block in enumerate(transformer.blocks):
            self._hooks.append(block.register_forward_hook(self._computed(index)))

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def errors(self, call: dict[str, Any]) -> list[float]:
        """Of each block of a call, as the formula says."""
        _, timestep, text, _ = call["condition"]
        rest = (text, timestep.unflatten(1, (6, -1)), call["rope"])
        with torch.no_grad():
            if call["blocks"]:
                pairs = [
                    (returned, self._blocks[index](given[0], *rest))
                    for index, (given, returned) in call["blocks"].items()
                ]
                return [relative(*pair) for pair in pairs]
            plain = call["tokens"].flatten(2).transpose(1, 2)
            for block in self._blocks:
                plain = block(plain, *rest)
            return [relative(call["last"], plain)] * len(self._blocks)

    def _began(self, module: Any, given: Any, returned: Any) -> None:
        self.calls.append({"rope": returned, "blocks": {}})

    def _seen(self, name: str) -> Any:
        return lambda module, given, returned: self.calls[-1].update({name: returned})

    def _computed(self, index: int) -> Any:
        return lambda module, given, returned: self.calls[-1]["blocks"].update({index: (given, returned)})


def relative(returned: torch.Tensor, plain: torch.Tensor) -> float:
    return float((returned.double() - plain.double()).norm() / plain.double().norm())


@pytest.fixture(scope="module")
def wan():
    """A tiny Wan under a sparse attention and a cache: its map, the summary of a run by itself, and that by hand."""
    case = TINY["wan"]
    pipe = case.build()
    pipe.set_progress_bar_config(disable=True)
    config = AccelConfig(attention=SPARSE, cache=[SKIPPING])
    by_hand = ByHand(pipe.transformer)
    with accel.enable(pipe, config) as session:
        case.run(pipe, num_inference_steps=STEPS)
    by_hand.remove()
    before = {name: sorted(vars(module)) for name, module in pipe.transformer.named_modules()}
    found = measured_heat(pipe, config, lambda: case.run(pipe, num_inference_steps=STEPS))
    assert {name: sorted(vars(module)) for name, module in pipe.transformer.named_modules()} == before
    return found, session.summary().to_dict()["runs"][-1], by_hand


def test_errors_are_those_by_hand_in_both_branches(wan):
    found, _, by_hand = wan
    assert [(one["denoiser"], one["branch"]) for one in found["maps"]] == [
        ("transformer", "cond"),
        ("transformer", "uncond"),
    ]
    assert found["steps"] == STEPS and found["unmeasured"] == {} and len(by_hand.calls) == 2 * STEPS
    for offset, one in enumerate(found["maps"]):
        for step in range(STEPS):
            column = [row[step] for row in one["error"]]
            assert column == pytest.approx(by_hand.errors(by_hand.calls[2 * step + offset]), rel=2e-3, abs=1e-7)


def test_what_is_computed_densely_has_no_error_and_what_is_not_has_one(wan):
    found, run, _ = wan
    for one in found["maps"]:
        reused = run["blocks"]["tdc"]["transformer"][one["branch"]]["reused"]
        sparse = run["blocks"]["pisa"]["transformer"][one["branch"]]["sparse"]
        assert [bool(blocks) for blocks in reused] == [False, False, False, True, False, True]
        for step in range(STEPS):
            column = [row[step] for row in one["error"]]
            if reused[step]:
                assert column[0] > 1e-4 and len(set(column)) == 1
            elif sparse[step]:
                assert column[0] == 0.0 and all(error > 1e-6 for error in column[1:])
            else:
                assert column == [0.0] * len(column)


def test_densities_are_those_of_the_recorder(wan):
    found, run, _ = wan
    densities = [value for one in found["maps"] for row in one["density"] for value in row]
    sparse = [value for value in densities if value is not None and value < 1]
    report = run["methods"]["pisa"]
    assert len(sparse) == report["sparse"] and sum(value == 1 for value in densities) == (
        report["attention_calls"] - report["sparse"]
    )
    assert sum(sparse) / len(sparse) == pytest.approx(report["density"], abs=1e-4)
    assert densities.count(None) == run["methods"]["tdc"]["reused"]


def test_every_call_has_its_time_also_a_skipped_one(wan):
    found, run, _ = wan
    seconds = [value for one in found["maps"] for row in one["seconds"] for value in row]
    assert all(value > 0 for value in seconds) and sum(seconds) < 100 * run["denoiser_seconds"]


@pytest.mark.parametrize("name", ["wan22", "flux"])
def test_two_transformers_and_two_stacks_of_blocks(name):
    """Each transformer of Wan 2.2 has the steps that it made; FLUX gives its single blocks both streams joined."""
    case = TINY[name]
    pipe = case.build()
    pipe.set_progress_bar_config(disable=True)
    config = AccelConfig(cache=[DeltaCacheConfig(interval=2, dense_steps=0.25, cached_blocks=0.75, boundary=1.0)])
    found = measured_heat(pipe, config, lambda: case.run(pipe, num_inference_steps=8))
    assert found["unmeasured"] == {"density": "no attention was sparse"}
    assert {one["denoiser"] for one in found["maps"]} == set(case.forwards)
    with accel.enable(pipe, config) as session:
        case.run(pipe, num_inference_steps=8)
    blocks = session.summary().to_dict()["runs"][-1]["blocks"]["delta"]
    skipped = 0
    for one in found["maps"]:
        said = blocks[one["denoiser"]][one["branch"]]
        for step in range(8):
            errors = [row[step] for row in one["error"]]
            made = bool(said["computed"][step]) or bool(said.get("reused", [""] * 8)[step])
            assert made == (errors[0] is not None) == (one["seconds"][0][step] is not None)
            if said.get("reused", [""] * 8)[step]:
                skipped += 1
                # The front blocks are computed, the rear ones reused.
                assert errors[0] == 0.0 and errors[-1] > 0
            elif made:
                assert not any(errors)
    assert skipped >= 2


def test_what_cannot_be_compared_is_said_and_the_time_is_measured(monkeypatch):
    case = TINY["dit"]
    pipe = case.build()
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipe.transformer, "_hf_hook", object(), raising=False)
    config = AccelConfig(cache=[DeltaCacheConfig()])
    found = measured_heat(pipe, config, lambda: case.run(pipe, num_inference_steps=4))
    assert "offloaded" in found["unmeasured"]["error"]
    assert all(one["error"] is None and one["density"] is None for one in found["maps"])
    assert all(value > 0 for one in found["maps"] for row in one["seconds"] for value in row)


def test_without_methods_there_is_nothing_to_measure():
    with pytest.raises(accel.AccelError, match="none is on"):
        measured_heat(None, AccelConfig(), lambda: None)
