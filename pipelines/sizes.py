"""Which heights, widths and numbers of frames a pipeline can make without rounding them, and at what rate it shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from accel.errors import AccelError
from accel.pipelines.checking import config_value
from accel.pipelines.sites import inspect_pipeline


@dataclass(frozen=True)
class SizeRule:
    """Sides are whole multiples of `pixels`; frames are one more than a multiple of `frames`."""

    pixels: int
    frames: int

    def check_side(self, name: str, size: int) -> None:
        """AccelError, with the nearest that works, for a side that would be rounded or refused later."""
        if size % self.pixels:
            nearest = max(1, (size + self.pixels // 2) // self.pixels) * self.pixels
            raise AccelError(f"{name}={size} is not a multiple of {self.pixels}; the nearest that works is {nearest}")

    def check_frames(self, count: int) -> None:
        """The same for a number of frames."""
        if (count - 1) % self.frames:
            nearest = (count - 1 + self.frames // 2) // self.frames * self.frames + 1
            rule = f"one more than a multiple of {self.frames}"
            raise AccelError(f"num_frames={count} is not {rule}; the nearest that works is {nearest}")


def size_rule(pipe: Any) -> SizeRule | None:
    """The rule of a pipeline, from its autoencoder's factors and its patches; None for an unknown family."""
    try:
        facts = inspect_pipeline(pipe)
    except AccelError:
        return None
    grid = facts.family.grid
    spatial = _first_of(
        pipe,
        "vae_scale_factor_spatial",
        "vae_scale_factor",
        "vae_spatial_compression_ratio",
        "vae_spatial_scale_factor",
    )
    # A pipeline that packs its tokens itself packs two by two, unless a field of the transformer says otherwise.
    packed = grid.layout == "BNC" and grid.patch[2] is None
    patch = 2 if packed else config_value(facts.denoisers[0].module.config, grid.patch[2])
    temporal = _first_of(
        pipe, "vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor"
    )
    return SizeRule(math.lcm(spatial * patch, facts.family.pixels), temporal)


def frame_rate(pipe: Any) -> float | None:
    """Frames a second of what a pipeline makes, by its family's facts; None where they do not say."""
    try:
        facts = inspect_pipeline(pipe)
    except AccelError:
        return None
    rate = facts.family.frame_rate
    if rate is None:
        return None
    configs: tuple[Any, ...] = (pipe.config, facts.denoisers[0].module.config)
    found = (value for name, value in rate.where.items() if any(config.get(name) for config in configs))
    return next(found, rate.usual)


def _first_of(pipe: Any, *names: str) -> int:
    return next((value for name in names if (value := getattr(pipe, name, None))), 1)
