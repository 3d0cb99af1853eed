"""The presets `quality`, `balanced` and `fast`.

A preset is data in the form of a configuration file. The values are chosen by us; `bench/results` holds the
measurements behind them.
"""

from __future__ import annotations

from typing import Any

from accel.config import AccelConfig
from accel.errors import AccelError

PRESETS: dict[str, dict[str, Any]] = {
    "quality": {"cache": [{"method": "delta", "interval": 2, "cached_blocks": 0.5, "dense_steps": 0.2}]},
    "balanced": {"cache": [{"method": "delta", "interval": 2, "cached_blocks": 0.75, "dense_steps": 0.1}]},
    "fast": {"cache": [{"method": "delta", "interval": 3, "cached_blocks": 0.75, "dense_steps": 0.1}]},
}


def preset(name: str) -> AccelConfig:
    """The configuration that a preset stands for."""
    if name not in PRESETS:
        raise AccelError(f"no preset {name!r}: there are {', '.join(PRESETS)}")
    return AccelConfig.from_dict(PRESETS[name])
