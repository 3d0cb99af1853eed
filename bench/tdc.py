"""Reuse over time on the built-in model, against fewer steps and against the caches of other libraries.

python -m bench.tdc [--prompts 8] [--steps 24 50] [--size standard] [--frames 17] [--rows tdc dbcache] [--write]

The temporal delta cache and the delta cache leave block calls out; FlashBlock leaves out attention within them, alone
and beside AdaSpa. Density is that of the attention calls that were computed.

The plain pipeline with fewer steps makes about as many block calls as the settings beside it: what a cache has to beat.
There are fewer settings for 50 steps, since a clip takes twice as long there.
"""

from __future__ import annotations

import math
from typing import Any

from accel.measure.trial import Setting
from bench.comparison import distinct, main, nearest, setting
from bench.rivals import CACHES, rivals
from bench.tables import Figure

# About how many times fewer block calls the settings are chosen to make, by the number of steps that they are for.
COSTS = {24: (1.6, 1.9, 2.3), 50: (1.9, 2.3)}
# The more steps, the less changes in one.
THRESHOLDS = {24: (0.05, 0.1, 0.2, 0.4), 50: (0.05, 0.1, 0.2)}
# What is published is a unit for each block, plain reuse, two steps in a row at most, and no weight of early steps.
PUBLISHED = {"units": "blocks", "order": 0, "max_skips": 2, "early": 0.0}
PUBLISHED_THRESHOLDS = {24: (0.12, 0.2), 50: (0.1,)}
PISA = {"method": "pisa", "density": 0.5, "dense_steps": 0.25, "dense_layers": 0}
# Attention that leaves blocks out in some steps and not in others makes their change less steady.
PISA_THRESHOLDS = {24: (0.2, 0.4), 50: (0.1,)}
DELTA_PUBLISHED = {"method": "delta", "interval": 2, "cached_blocks": 0.75, "boundary": 0.4, "dense_steps": 0.0}
DELTA = {
    24: {
        "delta, interval 3, 0.75 of the blocks": {"method": "delta", "interval": 3, "dense_steps": 0.1},
        "delta as published": DELTA_PUBLISHED,
    },
    50: {"delta, interval 3, 0.75 of the blocks": {"method": "delta", "interval": 3, "dense_steps": 0.1}},
}
ADASPA = {"method": "adaspa", "density": 0.25}
FLASHBLOCK = {"method": "flashblock"}
# FlashBlock alone, and at the model's own number of steps also beside others, and what AdaSpa is without it.
ATTENTION = {
    24: {
        "flashblock": {"cache": FLASHBLOCK},
        "adaspa": {"attention": ADASPA},
        "adaspa + flashblock": {"attention": ADASPA, "cache": FLASHBLOCK},
    },
    50: {"flashblock": {"cache": FLASHBLOCK}},
}
NOTES = (
    "",
    "TaylorSeer predicts the outputs of whole blocks in float32, from its fourth step on; MagCache's ratios are of one "
    "plain run with another seed. Pyramid broadcast is left out, since it gives one guidance branch the attention of "
    "the other on Wan, and FasterCache, since it needs guidance in one batch.",
)


def settings(pipe: Any, steps: int) -> list[Setting]:
    """The plain pipeline, Accel's caches, fewer steps, and the rivals' caches."""
    found = [setting(f"plain, {steps} steps", steps)]
    for threshold in nearest(THRESHOLDS, steps):
        found.append(_tdc(f"tdc, threshold {threshold:g}", steps, threshold=threshold))
    for threshold in nearest(PUBLISHED_THRESHOLDS, steps):
        found.append(_tdc(f"tdc as published, threshold {threshold:g}", steps, **PUBLISHED, threshold=threshold))
    for threshold in nearest(PISA_THRESHOLDS, steps):
        both = {"attention": PISA, "cache": {"method": "tdc", "threshold": threshold}}
        found.append(setting(f"tdc + pisa, threshold {threshold:g}", steps, both))
    found += [setting(name, steps, methods) for name, methods in nearest(ATTENTION, steps).items()]
    found += [setting(name, steps, {"cache": delta}) for name, delta in nearest(DELTA, steps).items()]
    for cost in nearest(COSTS, steps):
        fewer = math.ceil(steps / cost)
        found.append(setting(f"plain, {fewer} steps", fewer))
    return distinct([*found, *rivals(steps, CACHES)])


def _tdc(name: str, steps: int, **given: Any) -> Setting:
    return setting(name, steps, {"cache": {"method": "tdc", **given}})


if __name__ == "__main__":
    main(
        "tdc",
        "Reuse over time on the built-in model",
        __doc__,
        settings,
        Figure("overall_density", "overall_density", "density", "{:.3f}"),
        NOTES,
    )
