"""The presets `quality`, `balanced` and `fast`.

A preset is data in the form of a configuration file. All of its methods are optional: where the model does not allow
one, it is left out, and the summary says so. The thresholds are chosen by us on the built-in model (`python -m
bench.tdc`). PISA has the values that were published for the family, or else those of Wan or FLUX.1, from as many tokens
on as the smallest case that a gain was published for has (FLUX at 1024×1024, arXiv 2602.01077); no device has confirmed
it here.
"""

from __future__ import annotations

from typing import Any

from accel.config import AccelConfig
from accel.errors import AccelError

PRESETS: dict[str, dict[str, Any]] = {
    "quality": {"cache": [{"method": "tdc", "threshold": 0.1}], "optional": ["tdc"]},
    "balanced": {"cache": [{"method": "tdc", "threshold": 0.2}], "optional": ["tdc"]},
    "fast": {
        "attention": {"method": "pisa", "min_tokens": 4096},
        "cache": [{"method": "tdc", "threshold": 0.4}],
        "optional": ["pisa", "tdc"],
    },
}


def preset(name: str) -> AccelConfig:
    """The configuration that a preset stands for."""
    if name not in PRESETS:
        raise AccelError(f"no preset {name!r}: there are {', '.join(PRESETS)}")
    return AccelConfig.from_dict(PRESETS[name])
