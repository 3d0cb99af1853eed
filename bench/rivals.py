"""The rivals with settings that are for the built-in model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accel.measure.rivals import RIVALS
from accel.measure.trial import Setting
from bench.comparison import nearest

# Of the caches, settings that come near the last two costs of `bench.tdc`, by the number of steps that they are for.
_TAYLOR = {"disable_cache_before_step": 3, "taylor_factors_dtype": "float32"}
OTHERS: dict[str, dict[int, list[dict[str, Any]]]] = {
    "first-block": {24: [{"threshold": 0.14}, {"threshold": 0.2}], 50: [{"threshold": 0.1}]},
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
        ],
    },
    "magcache": {
        24: [{"threshold": 0.03, "retention_ratio": 0.1}],
        50: [{"threshold": 0.015, "retention_ratio": 0.1}],
    },
    "taylorseer": {
        24: [{"cache_interval": 2, **_TAYLOR}, {"cache_interval": 3, **_TAYLOR}],
        50: [{"cache_interval": 3, **_TAYLOR}],
    },
    "seacache": {
        24: [{"threshold": 0.2}, {"threshold": 0.3}, {"threshold": 0.4}],
        50: [{"threshold": 0.1}, {"threshold": 0.2}],
    },
    "torchao-int8": {24: [{}]},
    "flex": {24: [{}]},
}
_SHORT = {
    "residual_diff_threshold": "threshold",
    "max_warmup_steps": "warm-up",
    "retention_ratio": "retention",
    "cache_interval": "interval",
}
_UNSAID = ("disable_cache_before_step", "taylor_factors_dtype")
_NO_CACHES = ("torchao-int8", "flex")
CACHES = tuple(name for name in RIVALS if name not in _NO_CACHES)


def rivals(steps: int, names: Sequence[str] = RIVALS) -> list[Setting]:
    """Rivals with their settings for about so many steps; one that is not installed will say so in its row."""
    return [
        Setting(", ".join([name, *_words(one)]), steps=steps, rival=name, rival_settings=one)
        for name in names
        for one in nearest(OTHERS[name], steps)
    ]


def _words(settings: dict[str, Any]) -> list[str]:
    return [f"{_SHORT.get(key, key)} {value}" for key, value in settings.items() if key not in _UNSAID]
