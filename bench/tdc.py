"""Reuse over time on the built-in model, against fewer steps and against the caches of other libraries.

python -m bench.tdc [--prompts 8] [--steps 24 50] [--size standard] [--frames 17] [--rows tdc dbcache] [--write]

The temporal delta cache and the delta cache leave block calls out; FlashBlock leaves out attention within them, alone,
beside AdaSpa and beside the temporal delta cache. Density is that of the attention calls that were computed.

The plain pipeline with fewer steps makes about as many block calls as the settings beside it: what a cache has to beat.
"""

from __future__ import annotations

import math
from typing import Any

from accel.config import AccelConfig
from accel.measure.rivals import RIVALS, missing
from bench.clips import Row
from bench.comparison import main
from bench.tables import Figure

# About how many times fewer block calls the settings are chosen to make.
COSTS = (1.6, 1.9, 2.3)
# Settings at these costs, in this order, by the number of steps they are for: the more steps, the less changes in one.
THRESHOLDS = {24: (0.05, 0.1, 0.2, 0.4), 50: (0.025, 0.05, 0.1, 0.2)}
# What is published is a unit for each block, plain reuse, two steps in a row at most, and no weight of early steps.
PUBLISHED = {"units": "blocks", "order": 0, "max_skips": 2, "early": 0.0}
PUBLISHED_THRESHOLDS = {24: (0.08, 0.12, 0.2), 50: (0.04, 0.06, 0.1)}
PISA = {"method": "pisa", "density": 0.5, "dense_steps": 0.25, "dense_layers": 0}
# Attention that leaves blocks out in some steps and not in others makes their change less steady.
PISA_THRESHOLDS = {24: (0.2, 0.4), 50: (0.1, 0.2)}
# Interval, share of the blocks, and steps that are always computed.
DELTA = ((2, 0.5, 0.2), (2, 0.75, 0.1), (3, 0.75, 0.1))
DELTA_PUBLISHED = {"method": "delta", "interval": 2, "cached_blocks": 0.75, "boundary": 0.4, "dense_steps": 0.0}
ADASPA = {"method": "adaspa", "density": 0.25}
FLASHBLOCK = {"method": "flashblock"}
# Of each rival, settings that come near the last two costs.
_TAYLOR = {"disable_cache_before_step": 3, "taylor_factors_dtype": "float32"}
OTHERS: dict[str, dict[int, list[dict[str, Any]]]] = {
    "first-block": {24: [{"threshold": 0.14}, {"threshold": 0.2}], 50: [{"threshold": 0.07}, {"threshold": 0.1}]},
    "dbcache": {
        24: [
            {"residual_diff_threshold": 0.15, "max_warmup_steps": 3},
            {"residual_diff_threshold": 0.2, "max_warmup_steps": 3},
            {"residual_diff_threshold": 0.16, "max_warmup_steps": 4, "taylorseer": 1},
            {"residual_diff_threshold": 0.22, "max_warmup_steps": 4, "taylorseer": 1},
        ],
        50: [
            {"residual_diff_threshold": 0.07, "max_warmup_steps": 4},
            {"residual_diff_threshold": 0.1, "max_warmup_steps": 4},
            {"residual_diff_threshold": 0.07, "max_warmup_steps": 4, "taylorseer": 1},
            {"residual_diff_threshold": 0.1, "max_warmup_steps": 4, "taylorseer": 1},
        ],
    },
    "magcache": {
        24: [{"threshold": 0.01, "retention_ratio": 0.1}, {"threshold": 0.03, "retention_ratio": 0.1}],
        50: [{"threshold": 0.005, "retention_ratio": 0.1}, {"threshold": 0.015, "retention_ratio": 0.1}],
    },
    "taylorseer": {
        24: [{"cache_interval": 2, **_TAYLOR}, {"cache_interval": 3, **_TAYLOR}],
        50: [{"cache_interval": 2, **_TAYLOR}, {"cache_interval": 3, **_TAYLOR}],
    },
    "seacache": {
        24: [{"threshold": 0.2}, {"threshold": 0.3}, {"threshold": 0.4}],
        50: [{"threshold": 0.1}, {"threshold": 0.2}],
    },
}
_SHORT = {
    "residual_diff_threshold": "threshold",
    "max_warmup_steps": "warm-up",
    "retention_ratio": "retention",
    "cache_interval": "interval",
}
_UNSAID = ("disable_cache_before_step", "taylor_factors_dtype")


def rows(pipe: Any, steps: int) -> dict[str, Row]:
    """The plain pipeline, Accel's caches, fewer steps, and the rivals that are installed."""
    found = {f"plain, {steps} steps": Row(steps)}
    for threshold in nearest(THRESHOLDS, steps):
        found[f"tdc, threshold {threshold:g}"] = _tdc(steps, threshold=threshold)
    for threshold in nearest(PUBLISHED_THRESHOLDS, steps):
        found[f"tdc as published, threshold {threshold:g}"] = _tdc(steps, **PUBLISHED, threshold=threshold)
    for threshold in nearest(PISA_THRESHOLDS, steps):
        config = AccelConfig.from_dict({"attention": PISA, "cache": {"method": "tdc", "threshold": threshold}})
        found[f"tdc + pisa, threshold {threshold:g}"] = Row(steps, config)
    found["flashblock"] = Row(steps, AccelConfig.from_dict({"cache": FLASHBLOCK}))
    found["adaspa"] = Row(steps, AccelConfig.from_dict({"attention": ADASPA}))
    found["adaspa + flashblock"] = Row(steps, AccelConfig.from_dict({"attention": ADASPA, "cache": FLASHBLOCK}))
    tdc = {"method": "tdc", "threshold": nearest(THRESHOLDS, steps)[0]}
    found["tdc + flashblock"] = Row(steps, AccelConfig.from_dict({"cache": [tdc, FLASHBLOCK]}))
    for interval, share, dense in DELTA:
        delta = {"method": "delta", "interval": interval, "cached_blocks": share, "dense_steps": dense}
        found[f"delta, interval {interval}, {share:g} of the blocks"] = Row(
            steps, AccelConfig.from_dict({"cache": delta})
        )
    found["delta as published"] = Row(steps, AccelConfig.from_dict({"cache": DELTA_PUBLISHED}))
    for cost in COSTS:
        fewer = math.ceil(steps / cost)
        found[f"plain, {fewer} steps"] = Row(fewer)
    for name in RIVALS:
        if missing(name) is None:
            for settings in nearest(OTHERS[name], steps):
                found[f"{name}, {_words(settings)}"] = Row(steps, rival=name, settings=settings)
    return found


def notes() -> list[str]:
    """Which rivals are not in the table, and what those in it were told."""
    told = (
        "TaylorSeer predicts the outputs of whole blocks in float32, from its fourth step on; MagCache's ratios are of "
        "one plain run with another prompt. Pyramid broadcast is left out, since it gives one guidance branch the "
        "attention of the other on Wan, and FasterCache, since it needs guidance in one batch."
    )
    return ["", told, *(f"{name} is left out: {reason}." for name in RIVALS if (reason := missing(name)) is not None)]


def nearest(settings: dict[int, Any], steps: int) -> Any:
    """Those for the nearest number of steps."""
    return settings[min(settings, key=lambda known: abs(known - steps))]


def _tdc(steps: int, **settings: Any) -> Row:
    return Row(steps, AccelConfig.from_dict({"cache": {"method": "tdc", **settings}}))


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{_SHORT.get(key, key)} {value}" for key, value in settings.items() if key not in _UNSAID)


if __name__ == "__main__":
    main(
        "tdc",
        "Reuse over time on the built-in model",
        __doc__,
        rows,
        Figure("overall_density", "overall_density", "density", "{:.3f}"),
        notes,
    )
