"""What a cache of block changes held when it held most, in numbers and in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Range(NamedTuple):
    """From the least to the most."""

    least: int
    most: int

    @classmethod
    def of(cls, values: Iterable[int]) -> Range:
        found = list(values)
        return cls(min(found), max(found))


class HeldUnit(NamedTuple):
    """A unit in one guidance branch: what its changes take, how many they are, and whether they have slopes."""

    nbytes: int
    changes: int
    sloped: bool


@dataclass(frozen=True)
class Ledger:
    """How what is held adds up.

    Attributes:
        branches: guidance branches that hold anything.
        units: in each of them.
        unit_bytes: of each unit.
        changes: in each unit.
        sloped: whether any change has a slope.
    """

    branches: int
    units: Range
    unit_bytes: Range
    changes: Range
    sloped: bool

    @classmethod
    def of(cls, branches: Iterable[list[HeldUnit]]) -> Ledger | None:
        """Of the units that each branch holds; None where none holds any."""
        held = [units for units in branches if units]
        if not held:
            return None
        each = [unit for units in held for unit in units]
        return cls(
            len(held),
            Range.of(map(len, held)),
            Range.of(unit.nbytes for unit in each),
            Range.of(unit.changes for unit in each),
            any(unit.sloped for unit in each),
        )

    def __str__(self) -> str:
        units = f"{_span(*self.units)} unit{'s' if self.units.most > 1 else ''}"
        size = _span(*(f"{number / 1e6:.1f}" for number in self.unit_bytes))
        if self.changes.most > 1:
            what = f"{_span(*self.changes)} changes{' and their slopes' if self.sloped else ''}"
        else:
            what = "a change and its slope" if self.sloped else "a change"
        branches = f" for each of {self.branches} branches" if self.branches > 1 else ""
        return f"{units} of {size} MB ({what}){branches}"


def _span(least: object, most: object) -> str:
    return str(most) if least == most else f"{least} to {most}"
