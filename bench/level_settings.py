"""What is compared at levels of quality: of each method, of combinations and of each rival a few settings.

They are chosen for 24 steps, to give each method a mean PSNR near 35, 30 and 25 dB, and none far above the first that
is slower than another of it; where `python -m bench.tdc` and `python -m bench.sparse_attention` print no figures that
near, they are a guess. No cache of another library has fewer settings than ours.
"""

from __future__ import annotations

import math
from typing import Any

from accel.measure.trial import Setting
from bench.comparison import setting

BASELINE, FEWER = "plain", "fewer steps"
# Shares of the steps, beside which every cache must stand.
_FEWER = (0.79, 0.6, 0.45)
_TAYLOR = {"disable_cache_before_step": 3, "taylor_factors_dtype": "float32"}
_INT8 = {"method": "int8"}


def _pisa(density: float) -> dict[str, Any]:
    search = {"router": "search", "search_steps": [0.25, 0.6]}
    return {"method": "pisa", "density": density, "dense_steps": 0.25, "dense_layers": 0, **search}


def _adaspa(density: float) -> dict[str, Any]:
    return {"method": "adaspa", "density": density, "search_steps": [0.25, 0.6]}


def _tdc(threshold: float, skips: int = 5) -> dict[str, Any]:
    return {"method": "tdc", "threshold": threshold, "max_skips": skips}


def _delta(interval: int, share: float) -> dict[str, Any]:
    return {"method": "delta", "interval": interval, "cached_blocks": share, "dense_steps": 0.1}


# By method, and below it by the rest of the setting's name.
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "delta": {
        f"interval {interval}, {share:g} of the blocks": {"cache": _delta(interval, share)}
        for interval, share in ((2, 0.75), (3, 0.75), (4, 0.9))
    },
    "tdc": {
        f"threshold {threshold:g}, {skips} skips": {"cache": _tdc(threshold, skips)}
        for threshold, skips in ((0.8, 5), (1.6, 5), (3.2, 5), (6.4, 8))
    },
    "flashblock": {"interval 6": {"cache": {"method": "flashblock", "interval": 6}}},
    "pisa": {f"density {density:g}": {"attention": _pisa(density)} for density in (0.5, 0.25, 0.125)},
    "adaspa": {f"density {density:g}": {"attention": _adaspa(density)} for density in (0.5, 0.35, 0.17)},
    "int8": {"all linears": {"quantize": _INT8}},
    "mixed": {"6 bits": {"quantize": {"method": "mixed", "target_bits": 6.0, "emulate": True}}},
    "combination": {
        "tdc 0.8 + adaspa 0.7": {"cache": _tdc(0.8), "attention": _adaspa(0.7)},
        "tdc 1.6 + int8": {"cache": _tdc(1.6), "quantize": _INT8},
        "tdc 3.2 + adaspa 0.5": {"cache": _tdc(3.2), "attention": _adaspa(0.5)},
        "tdc 6.4 (8 skips) + adaspa 0.35": {"cache": _tdc(6.4, 8), "attention": _adaspa(0.35)},
    },
}
RIVALS: dict[str, dict[str, dict[str, Any]]] = {
    "first-block": {f"threshold {value:g}": {"threshold": value} for value in (0.1, 0.13, 0.2, 0.35)},
    "magcache": {
        f"threshold {value:g}, {skips} skips": {
            "threshold": value,
            "max_skip_steps": skips,
            "retention_ratio": 0.1,
        }
        for value, skips in ((0.015, 3), (0.02, 3), (0.045, 3), (0.1, 5))
    },
    "taylorseer": {f"interval {each}": {"cache_interval": each, **_TAYLOR} for each in (3, 4, 5, 6, 8)},
    "seacache": {
        f"threshold {value:g}, {skips} in a row": {"threshold": value, "max_consecutive_cached": skips}
        for value, skips in ((0.5, 3), (0.6, 4), (0.8, 4), (1.3, 6))
    },
    "dbcache": {
        **{
            f"threshold {value:g}": {"residual_diff_threshold": value, "max_warmup_steps": 3}
            for value in (0.2, 0.27, 0.4)
        },
        **{
            f"threshold {value:g}, calibrated": {
                "residual_diff_threshold": value,
                "max_warmup_steps": 4,
                "taylorseer": 1,
            }
            for value in (0.16, 0.19)
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
