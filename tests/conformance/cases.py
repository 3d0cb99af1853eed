"""The grid: a method joins with a line in METHODS, a family with a line in `tests.tiny_pipelines`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.tiny_pipelines import TINY, TinyCase


@dataclass(frozen=True)
class MethodCase:
    """A method: a setting that acts, one that must give the plain bits, and how a report shows that it acted."""

    name: str
    active: dict[str, Any]
    identity: dict[str, Any]
    acted: Callable[[dict[str, Any]], bool]


METHODS = {
    case.name: case
    for case in (
        MethodCase(
            "delta",
            active={"cache": "delta"},
            identity={"cache": "delta", "interval": 1},
            acted=lambda report: report["reused"] > 0,
        ),
    )
}

# Pipelines of families that Accel does not know are for the tests of the clock.
FAMILIES: dict[str, TinyCase] = {name: case for name, case in TINY.items() if case.family != "sd3"}
