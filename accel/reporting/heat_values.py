"""Density, error and time of each block at each step, with what would change them, for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from accel.reporting.advice import Advice, Spot
from accel.reporting.heat import densities

Measure = Literal["density", "error", "seconds"]
Table = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Values:
    """One measure of one denoiser and guidance branch: `values[block][step]`, None where there is none.

    `advice` says in words what would change each, "" where nothing does.
    """

    measure: Measure
    denoiser: str
    branch: str
    values: Table
    advice: Sequence[Sequence[str]]

    def hottest(self, most: int) -> list[tuple[list[int], int]]:
        """Blocks and step of what one looks at first: the largest errors and times, the smallest densities.

        Blocks with the same value in a step, as those that are skipped together, are one.
        """
        blocks: dict[tuple[float, int], list[int]] = {}
        for block, row in enumerate(self.values):
            for step, value in enumerate(row):
                if value is not None and (value < 1 if self.measure == "density" else value > 0):
                    blocks.setdefault((value, step), []).append(block)
        sign = 1 if self.measure == "density" else -1
        found = sorted(blocks.items(), key=lambda item: (sign * item[0][0], item[0][1]))
        return [(those, step) for (_, step), those in found[:most]]


def values_of(summary: Mapping[str, Any], measured: Mapping[str, Any] | None) -> list[Values]:
    """The tables of the last run of a session's summary, and those that were measured of the same settings.

    Args:
        summary: `Summary.to_dict`.
        measured: what `accel.measure.heat.measured_heat` gave; None where nothing was.
    """
    if not summary["runs"]:
        return []
    advice = Advice(summary)
    found = [
        _values("density", one.denoiser, one.branch, one.values, partial(_of_density, advice, one.method))
        for one in densities(summary["runs"][-1])
    ]
    for one in () if measured is None else measured["maps"]:
        place = one["denoiser"], one["branch"]
        if one["error"] is not None:
            found.append(_values("error", *place, one["error"], partial(_of_error, advice)))
        if one["seconds"] is not None:
            found.append(_values("seconds", *place, one["seconds"], partial(_of_seconds, advice)))
    return found


def unmeasured(summary: Mapping[str, Any], measured: Mapping[str, Any] | None) -> list[str]:
    """Which measures are missing from `values_of` and why, in sentences."""
    if not summary["runs"]:
        return []
    if measured is None:
        return ["Error and time of single blocks were not measured; accel bench --heat measures them."]
    return [f"No {name}: {why}." for name, why in measured["unmeasured"].items()]


def _values(measure: Measure, denoiser: str, branch: str, table: Table, says: Callable[[Spot, float], str]) -> Values:
    advice = [
        ["" if value is None else says((denoiser, branch, block, step), value) for step, value in enumerate(row)]
        for block, row in enumerate(table)
    ]
    return Values(measure, denoiser, branch, table, advice)


def _of_density(advice: Advice, method: str, spot: Spot, value: float) -> str:
    if value == 1.0:
        return _told("To lower it", advice.cheaper(spot, method))
    return _told("To raise it", advice.toward_plain(spot, method))


def _of_error(advice: Advice, spot: Spot, value: float) -> str:
    return "" if value == 0.0 else _told("To lower it", advice.toward_plain(spot))


def _of_seconds(advice: Advice, spot: Spot, value: float) -> str:
    return _told("To shorten it", advice.cheaper(spot))


def _told(aim: str, what: str) -> str:
    return f"{aim}, {what}" if what else ""
