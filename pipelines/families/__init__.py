"""The families that Accel knows: each module of this package holds the facts of one, as `FAMILY`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from accel.pipelines.facts import Family


@cache
def families() -> dict[str, Family]:
    """All known families by name, sorted."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").FAMILY for name in names}
