"""The delta cache on the built-in model, against the plain pipeline and against fewer steps in the same time.

python -m bench.delta_cache [--prompts 4] [--size standard] [--threads 1] [--write]

Below each setting stands the plain pipeline with so few steps that it makes as many block calls, rounded up: what a
cache has to beat.
"""

from __future__ import annotations

import math
from typing import Any

from accel.config import AccelConfig
from accel.measure.trial import Setting
from accel.methods.delta import DeltaCacheConfig, DeltaSchedule
from bench.comparison import distinct, main, setting
from bench.tables import Figure

SETTINGS: dict[str, dict[str, Any]] = {
    f"interval {interval}, {share:g} of the blocks": {
        "cache": {"method": "delta", "interval": interval, "cached_blocks": share, "dense_steps": dense}
    }
    for interval, share, dense in ((2, 0.5, 0.2), (2, 0.75, 0.1), (3, 0.75, 0.1))
}
PUBLISHED = {"cache": {"method": "delta", "interval": 2, "cached_blocks": 0.75, "boundary": 0.4, "dense_steps": 0.0}}


def settings(pipe: Any, steps: int) -> list[Setting]:
    """The plain pipeline, each setting, and behind each the plain steps that make at least as many block calls."""
    found = [setting(f"plain, {steps} steps", steps)]
    blocks = len(pipe.transformer.blocks)
    for name, data in (SETTINGS | {"as published": PUBLISHED}).items():
        config = AccelConfig.from_dict(data)
        found.append(setting(f"delta, {name}", steps, config))
        plans = [DeltaSchedule(_delta(config), blocks, steps).plan(step) for step in range(steps)]
        calls = steps * blocks - sum(len(plan.blocks) for plan in plans if plan.reuse)
        fewer = math.ceil(calls / blocks)
        found.append(setting(f"plain, {fewer} steps", fewer))
    return distinct(found)


def _delta(config: AccelConfig) -> DeltaCacheConfig:
    (delta,) = config.cache
    assert isinstance(delta, DeltaCacheConfig)
    return delta


if __name__ == "__main__":
    main(
        "delta_cache",
        "The delta cache on the built-in model",
        __doc__,
        settings,
        Figure("reused_fraction", "reused", "block calls reused", "{:.1%}"),
    )
