"""What the table of operations is made of: an operation at a size, what it costs, and how to know that it is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.kernels.forms import use
from accel.measure.timing import Case
from bench.gpu_suite.problems import BOUNDS, SUM_BOUNDS

# Tokens of a block, and rows (the last ones, of which the last tile may be short) whose result is checked.
BLOCK = 64
CHECKED = 64

Tensors = tuple[Tensor, ...]
# What takes an operation's arguments in its place, by name.
Rivals = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Place:
    """Where inputs are made, in which format, and the share of blocks that sparse attention keeps."""

    device: str
    dtype: torch.dtype
    density: float

    @property
    def bound(self) -> float:
        """The largest relative error (root mean square) against float64."""
        return BOUNDS[self.dtype]

    @property
    def bound_of_sums(self) -> float:
        """That of sums that are float32 whatever they sum."""
        return SUM_BOUNDS[self.dtype]


@dataclass(frozen=True)
class Work:
    """What an operation cannot but do.

    `flops` are multiplications and additions of its products (0 where moving memory is all), `moved` the bytes that it
    reads and writes once, `rival` the flops of what it is set beside, `needs` the bytes that its inputs, results, check
    and rivals take together.
    """

    flops: float
    moved: float
    needs: float
    rival: float = 0.0


@dataclass(frozen=True)
class Trial:
    """An operation on tensors that lie ready.

    `rivals` are what a user would have instead, by name. `found` takes what is checked out of the result, `wanted`
    gives the same from the reference or by another way. With the bound 0 both must be the same bits; otherwise the
    bound is that of the relative error, or of the share of numbers that differ where they are no floats.
    """

    run: Callable[[], Any]
    rivals: Mapping[str, Case]
    found: Callable[[Any], Tensors]
    wanted: Callable[[], Tensors]
    bound: float = 0.0


@dataclass(frozen=True)
class Variant:
    """One way to call an operation at a size; `shape` is for people, `make` makes the tensors."""

    name: str
    shape: str
    work: Work
    make: Callable[[], Trial]


def by_reference(call: Callable[..., Any]) -> Rivals:
    """The same call in the reference form, which is plain torch."""

    def specified(*given: Tensor) -> Any:
        with use("reference"):
            return call(*given)

    return {"torch (reference form)": specified}


def last_rows(*tensors: Tensor) -> Tensors:
    """The rows that are checked, on a CPU, where the reference's bits are those of the specification."""
    return tuple(tensor[-CHECKED:].cpu() for tensor in tensors)
