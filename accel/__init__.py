"""Accel makes an existing diffusers pipeline faster without training.

One call turns it on, the summary says truthfully what it did, and one call undoes it exactly. Names are loaded on first
use, so that `import accel` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AccelConfig": "accel.config",
    "AccelError": "accel.errors",
    "AccelWarning": "accel.errors",
    "AdaSpaConfig": "accel.methods.adaspa",
    "DeltaCacheConfig": "accel.methods.delta",
    "FlashBlockConfig": "accel.methods.flashblock",
    "Int8Config": "accel.methods.int8",
    "MixedPrecisionConfig": "accel.methods.mixed",
    "NVFP4Config": "accel.methods.nvfp4",
    "NVFP4WeightConfig": "accel.methods.nvfp4_weight",
    "PISAConfig": "accel.methods.pisa",
    "StoredWeightsConfig": "accel.integrations.config",
    "TemporalDeltaCacheConfig": "accel.methods.tdc",
    "disable": "accel.session",
    "enable": "accel.session",
    "load_pipeline": "accel.integrations.loading",
    "summary": "accel.session",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from accel.config import AccelConfig as AccelConfig
    from accel.errors import AccelError as AccelError
    from accel.errors import AccelWarning as AccelWarning
    from accel.integrations.config import StoredWeightsConfig as StoredWeightsConfig
    from accel.integrations.loading import load_pipeline as load_pipeline
    from accel.methods.adaspa import AdaSpaConfig as AdaSpaConfig
    from accel.methods.delta import DeltaCacheConfig as DeltaCacheConfig
    from accel.methods.flashblock import FlashBlockConfig as FlashBlockConfig
    from accel.methods.int8 import Int8Config as Int8Config
    from accel.methods.mixed import MixedPrecisionConfig as MixedPrecisionConfig
    from accel.methods.nvfp4 import NVFP4Config as NVFP4Config
    from accel.methods.nvfp4_weight import NVFP4WeightConfig as NVFP4WeightConfig
    from accel.methods.pisa import PISAConfig as PISAConfig
    from accel.methods.tdc import TemporalDeltaCacheConfig as TemporalDeltaCacheConfig
    from accel.session import disable as disable
    from accel.session import enable as enable
    from accel.session import summary as summary


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'accel' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
