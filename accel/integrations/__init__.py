"""Stored weights through diffusers: importing this package adds Accel's quantizer to those that diffusers knows.

That is the one thing that Accel adds to another library for a whole process. Nothing that is there already is replaced.
"""

from __future__ import annotations

from accel.integrations.config import StoredWeightsConfig
from accel.integrations.quantizer import register

__all__ = ["StoredWeightsConfig", "register"]

register()
