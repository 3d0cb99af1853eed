"""The grid: a method joins with a line in METHODS, a family with a line in `tests.tiny_pipelines`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import accel
from accel.methods.base import MethodConfig
from tests.tiny_pipelines import TINY, TinyCase


@dataclass(frozen=True)
class MethodCase:
    """A method: a setting that acts, one that must give the plain bits, and how a report shows that it acted."""

    name: str
    active: dict[str, Any]
    # None where every setting changes the result.
    identity: dict[str, Any] | None
    acted: Callable[[dict[str, Any]], bool]
    # A cache adds what it kept, so that equal inputs must give equal outputs on every step.
    exact_on_equal_inputs: bool = False
    # A setting that asks for something, and leaves the method nothing to do in eight steps; None where there is none.
    idle: MethodConfig | None = None
    # How far the accelerated result of these random models may be from the plain one, relative to it.
    error: float = 0.2
    # How far, relative to the result, the forms of its operations may be apart.
    forms_apart: float = 1e-4
    # Families on which other settings act, or none.
    elsewhere: dict[str, dict[str, Any] | None] = field(default_factory=dict)

    def on(self, family: str) -> MethodCase | None:
        """The case as it is on a family, or None where the method is refused there."""
        active = self.elsewhere.get(family, self.active)
        return None if active is None else replace(self, active=active)

    @property
    def quantizes(self) -> bool:
        return "quantize" in self.active

    @property
    def has_identity(self) -> bool:
        return self.identity is not None


METHODS = {
    case.name: case
    for case in (
        MethodCase(
            "delta",
            active={"cache": "delta"},
            identity={"cache": "delta", "interval": 1},
            acted=lambda report: report["reused"] > 0,
            idle=accel.DeltaCacheConfig(dense_steps=1.0),
            exact_on_equal_inputs=True,
            forms_apart=0.0,
        ),
        MethodCase(
            "tdc",
            active={"cache": "tdc", "threshold": 10.0, "max_skips": 2},
            identity={"cache": "tdc", "threshold": 0.0},
            acted=lambda report: report["reused"] > 0,
            idle=accel.TemporalDeltaCacheConfig(dense_steps=1.0),
            exact_on_equal_inputs=True,
        ),
        MethodCase(
            "flashblock",
            active={"cache": "flashblock", "density": 0.5},
            identity={"cache": "flashblock", "interval": 1},
            acted=lambda report: report["reused"] > 0 and report["density"] < 1,
            idle=accel.FlashBlockConfig(dense_steps=1.0),
            exact_on_equal_inputs=True,
            elsewhere={"anyflow_far": {"cache": "flashblock"}, "sana": None},
        ),
        MethodCase(
            "pisa",
            # The tiny models have two blocks of transformer and eight of tokens.
            active={"attention": "pisa", "density": 0.5, "dense_layers": 1},
            identity={"attention": "pisa", "density": 1.0},
            acted=lambda report: report["sparse"] > 0 and report["density"] < 1,
            idle=accel.PISAConfig(dense_steps=1.0),
            elsewhere={"anyflow_far": None, "sana": None},
        ),
        MethodCase(
            "adaspa",
            active={"attention": "adaspa", "density": 0.5},
            identity={"attention": "adaspa", "density": 1.0},
            acted=lambda report: report["sparse"] > 0 and report["searched"] > 0 and report["density"] < 1,
            idle=accel.AdaSpaConfig(search_steps=(0.99,)),
            elsewhere={"anyflow_far": None, "sana": None},
        ),
        MethodCase(
            "int8",
            active={"quantize": "int8"},
            identity=None,
            acted=lambda report: report["calls"]["int8"] > 0 and not report["calls"]["plain"],
            forms_apart=0.0,
        ),
        MethodCase(
            "nvfp4",
            active={"quantize": "nvfp4"},
            identity=None,
            acted=lambda report: report["calls"]["nvfp4"] > 0 and not report["calls"]["plain"],
            error=0.6,
        ),
        MethodCase(
            "nvfp4-weight",
            active={"quantize": "nvfp4-weight", "quantize_modulation": True},
            identity=None,
            acted=lambda report: (
                report["calls"]["plain"] > 0 and report["weight_bytes"] < report["weight_bytes_before"]
            ),
            error=0.6,
        ),
        MethodCase(
            "mixed",
            active={"quantize": "mixed", "emulate": True},
            identity=None,
            acted=lambda report: min(report["calls"]["int8"], report["calls"]["nvfp4"]) > 0,
            error=0.6,
        ),
    )
}

# A step of Heun's scheduler is two of the model: that is for the tests of the clock.
FAMILIES: dict[str, TinyCase] = {name: case for name, case in TINY.items() if name != "sd3_heun"}
