"""Criteria for which layers get the finer format at a step, judged by the errors of the products that come of them.

A rule is given what it would know in a run, step by step; the best possible choice knows all errors beforehand.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from accel.methods.layer_choice import Layer
from accel.methods.precision_calibration import Calibration
from accel.methods.precision_rule import Rule, ShareRule, ThresholdRule, later_share
from bench.gemm_errors import ACTIVATIONS, Errors

SEEDS = (0, 1, 2)
BEST = "best possible"
# What mixed precision does by itself, without a calibration.
OWN = "error at the first step"
# The rule of the paper.
LINE = "calibrated line"
RuleMaker = Callable[[], Rule]
Known = dict[int, float]


@dataclass
class TableRule:
    """The finer format where a table (steps, layers) says so."""

    table: Tensor

    def high(self, layers: list[Layer], changes: object, errors: object, steps_left: int) -> set[int]:
        step = self.table.shape[0] - steps_left
        return {layer.index for layer in layers if self.table[step, layer.index]}


@dataclass
class RandomRule:
    """The finer format for a share of all layers and steps, drawn at random."""

    share: float
    seed: int = 0
    _drawn: TableRule | None = field(default=None, init=False)

    def high(self, layers: list[Layer], changes: object, errors: object, steps_left: int) -> set[int]:
        if self._drawn is None:
            pairs = steps_left * len(layers)
            table = torch.zeros(pairs, dtype=torch.bool)
            order = torch.randperm(pairs, generator=torch.Generator().manual_seed(self.seed))
            table[order[: round(self.share * pairs)]] = True
            self._drawn = TableRule(table.view(steps_left, -1))
        return self._drawn.high(layers, changes, errors, steps_left)


def criteria(share: float, steps: int, calibration: Calibration) -> dict[str, RuleMaker]:
    """Rules for a share of layers and steps with the finer format."""
    threshold = calibration.threshold(1.0 - later_share(share, steps))
    return {
        OWN: partial(ShareRule, share),
        "change of the block": partial(ShareRule, share, _change),
        "error at the first step x change": partial(ShareRule, share, _product),
        LINE: partial(ThresholdRule, threshold, calibration.lines),
        **{random_name(seed): partial(RandomRule, share, seed) for seed in SEEDS},
    }


def random_name(seed: int) -> str:
    """The name of a random choice among the criteria."""
    return f"random, seed {seed}"


def best(found: Errors, share: float) -> Tensor:
    """The choice (steps, layers) with the least mean error of all products."""
    gains = found.errors["W4A4"] - found.errors["W4A8"]
    table = torch.zeros(gains.numel(), dtype=torch.bool)
    table[gains.flatten().topk(round(share * gains.numel())).indices] = True
    return table.view_as(gains)


def replay(make_rule: RuleMaker, layers: Sequence[Layer], found: Errors) -> Tensor:
    """What the rule chooses (steps, layers) in a run with these errors and changes."""
    rule, steps = make_rule(), found.changes.shape[0]
    table = torch.zeros(steps, len(layers), dtype=torch.bool)
    changes: Known = {}
    errors: Known = {}
    for step in range(steps):
        for index in rule.high(list(layers), changes, errors, steps - step):
            table[step, index] = True
        changes = dict(enumerate(found.changes[step].tolist()))
        errors = errors or dict(enumerate(found.errors[ACTIVATIONS][step].tolist()))
    return table


@dataclass(frozen=True)
class Judged:
    """A choice: its bits, the mean error of the products, and where that lies from W4A4 (0) to W4A8 (1); the same once
    more with every error weighted by how much its block changes its input."""

    bits: float
    error: float
    place: float
    weighted_place: float

    @classmethod
    def mean(cls, several: Sequence[Judged]) -> Judged:
        """Of several runs."""
        return cls(*(statistics.mean(getattr(one, name) for one in several) for name in cls.__dataclass_fields__))


def judge(choice: Tensor, layers: Sequence[Layer], found: Errors) -> Judged:
    """The mean error of the products of one run when the chosen ones have INT8 activations and the others NVFP4."""
    low, high = found.errors["W4A4"], found.errors["W4A8"]
    made = torch.where(choice, high, low)
    weights = found.changes[:, [layer.block for layer in layers]]
    bits = 4.0 + 4.0 * choice.float().mean().item()
    place = (low.mean() - made.mean()) / (low.mean() - high.mean())
    weighted = ((low - made) * weights).sum() / ((low - high) * weights).sum()
    return Judged(bits, made.mean().item(), place.item(), weighted.item())


def _change(error: float, change: float) -> float:
    return change


def _product(error: float, change: float) -> float:
    return error * change
