"""What is compared at levels of quality: of each method, of combinations and of each rival a few settings.

They are spread for 24 steps, from little to much that is left out, so that the levels lie between them where a method
reaches them at all; the rivals have about as many as our own.
"""

from __future__ import annotations

import math
from typing import Any

from accel.measure.trial import Setting
from bench.comparison import setting
from bench.tdc import DELTA

BASELINE, FEWER = "plain", "fewer steps"
# Shares of the steps, beside which every cache must stand.
_FEWER = (0.8, 0.65, 0.55, 0.45, 0.4)
_TAYLOR = {"disable_cache_before_step": 3, "taylor_factors_dtype": "float32"}
_FLASHBLOCK = {"method": "flashblock"}
_INT8 = {"method": "int8"}


def _pisa(density: float) -> dict[str, Any]:
    search = {"router": "search", "search_steps": [0.25, 0.6]}
    return {"method": "pisa", "density": density, "dense_steps": 0.25, "dense_layers": 0, **search}


def _adaspa(density: float) -> dict[str, Any]:
    return {"method": "adaspa", "density": density, "search_steps": [0.25, 0.6]}


def _tdc(threshold: float, skips: int = 3) -> dict[str, Any]:
    return {"method": "tdc", "threshold": threshold, "max_skips": skips}


# By method, and below it by the rest of the setting's name.
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "delta": {
        **DELTA,
        "interval 4": {"cache": {"method": "delta", "interval": 4, "cached_blocks": 0.9, "dense_steps": 0.1}},
    },
    "tdc": {
        f"threshold {threshold:g}, {skips} skips": {"cache": _tdc(threshold, skips)}
        for threshold, skips in ((0.2, 3), (0.4, 3), (0.8, 5), (1.6, 5), (3.2, 5), (6.4, 8), (12.8, 8))
    },
    "flashblock": {f"interval {interval}": {"cache": {**_FLASHBLOCK, "interval": interval}} for interval in (3, 6)},
    "pisa": {f"density {density:g}": {"attention": _pisa(density)} for density in (0.5, 0.35, 0.25, 0.125)},
    "adaspa": {f"density {density:g}": {"attention": _adaspa(density)} for density in (0.5, 0.35, 0.25, 0.125)},
    "int8": {"all linears": {"quantize": _INT8}},
    "mixed": {f"{bits} bits": {"quantize": {"method": "mixed", "target_bits": float(bits)}} for bits in (6, 7)},
    "combination": {
        "tdc 0.4 + adaspa 0.5": {"cache": _tdc(0.4), "attention": _adaspa(0.5)},
        "tdc 1.6 (5 skips) + adaspa 0.5": {"cache": _tdc(1.6, 5), "attention": _adaspa(0.5)},
        "tdc 3.2 (5 skips) + adaspa 0.5": {"cache": _tdc(3.2, 5), "attention": _adaspa(0.5)},
        "tdc 0.4 + adaspa 0.25": {"cache": _tdc(0.4), "attention": _adaspa(0.25)},
        "tdc 0.2 + pisa 0.5": {"cache": _tdc(0.2), "attention": _pisa(0.5)},
        "tdc 0.4 + pisa 0.35": {"cache": _tdc(0.4), "attention": _pisa(0.35)},
        "tdc 0.4 + flashblock": {"cache": [_tdc(0.4), _FLASHBLOCK]},
        "adaspa 0.5 + flashblock": {"attention": _adaspa(0.5), "cache": _FLASHBLOCK},
        "tdc 1.6 (5 skips) + int8": {"cache": _tdc(1.6, 5), "quantize": _INT8},
        "tdc 1.6 (5 skips) + adaspa 0.5 + int8": {
            "cache": _tdc(1.6, 5),
            "attention": _adaspa(0.5),
            "quantize": _INT8,
        },
    },
}
RIVALS: dict[str, dict[str, dict[str, Any]]] = {
    "first-block": {f"threshold {value:g}": {"threshold": value} for value in (0.14, 0.2, 0.3, 0.5)},
    "magcache": {
        f"threshold {value:g}, {skips} skips": {
            "threshold": value,
            "max_skip_steps": skips,
            "retention_ratio": 0.1,
        }
        for value, skips in ((0.03, 3), (0.06, 3), (0.12, 3), (0.12, 5))
    },
    "taylorseer": {f"interval {each}": {"cache_interval": each, **_TAYLOR} for each in (3, 4, 5, 6, 8)},
    "seacache": {
        f"threshold {value:g}, {skips} in a row": {"threshold": value, "max_consecutive_cached": skips}
        for value, skips in ((0.4, 2), (0.8, 2), (0.8, 4), (1.6, 6))
    },
    "dbcache": {
        **{
            f"threshold {value:g}": {"residual_diff_threshold": value, "max_warmup_steps": 3}
            for value in (0.15, 0.2, 0.3, 0.5)
        },
        **{
            f"threshold {value:g}, calibrated": {
                "residual_diff_threshold": value,
                "max_warmup_steps": 4,
                "taylorseer": 1,
            }
            for value in (0.16, 0.25, 0.4)
        },
    },
    "torchao-int8": {"all linears": {}},
    "flex": {"all attention": {}},
}


def baseline(steps: int) -> Setting:
    """What every other setting is compared with."""
    return setting(BASELINE, steps)


def families(steps: int) -> dict[str, list[Setting]]:
    """The settings by method: Accel's, the plain pipeline with fewer steps, the rivals."""
    found = {
        name: [setting(f"{name}, {rest}", steps, methods) for rest, methods in each.items()]
        for name, each in METHODS.items()
    }
    counts = dict.fromkeys(math.ceil(share * steps) for share in _FEWER)
    found[FEWER] = [setting(f"{BASELINE}, {count} steps", count) for count in counts if count < steps]
    for name, rivals in RIVALS.items():
        found[name] = [
            Setting(f"{name}, {rest}", steps=steps, rival=name, rival_settings=given) for rest, given in rivals.items()
        ]
    return found
