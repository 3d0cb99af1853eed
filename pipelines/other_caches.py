"""Caches of others on a transformer: what they skip, Accel's methods would neither see nor count.

Those of diffusers go on by `enable_cache`, or by functions that leave nothing but hooks on the blocks. cache-dit puts
another `forward` on the transformer, and so do the patches that are handed around for single models.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from accel.pipelines.offloading import BY_HAND, whose_forward

# Modules of `diffusers.hooks` whose hooks leave something out; those of the others compute everything.
_CACHES = (
    *("faster_cache", "first_block_cache", "mag_cache", "pyramid_attention_broadcast"),
    *("sea_cache", "taylorseer_cache", "text_kv_cache"),
)


def other_cache(name: str, module: nn.Module) -> tuple[str, str] | None:
    """What caches in the transformer `pipe.{name}`, and how it comes off, in words; None where nothing does."""
    if getattr(module, "is_cache_enabled", False):
        return f"a cache of diffusers is on in pipe.{name}", f"call pipe.{name}.disable_cache()"
    if getattr(module, "_is_cached", False):
        return f"a cache of cache-dit is on in pipe.{name}", "call cache_dit.disable_cache(pipe)"
    if _has_cache_hooks(module):
        remedy = "one that was not put on by enable_cache has no undo, so the pipeline has to be loaded without it"
        return f"a cache of diffusers is on in pipe.{name}", remedy
    return None


def foreign_forward(name: str, module: nn.Module) -> str | None:
    """That the transformer computes by a `forward` that is not diffusers' own, as a remark; None where it does not."""
    owner = next(base for base in type(module).__mro__ if "forward" in vars(base))
    own = inspect.unwrap(vars(owner)["forward"]).__module__ == owner.__module__
    if own and whose_forward(module) != BY_HAND:
        return None
    return (
        f"pipe.{name} computes by another forward than that of diffusers, as with the caches of others: "
        "what it leaves out or changes, Accel neither sees nor counts"
    )


def _has_cache_hooks(module: nn.Module) -> bool:
    registries: list[Any] = [getattr(part, "_diffusers_hook", None) for part in module.modules()]
    hooks = (hook for registry in registries if registry is not None for hook in registry.hooks.values())
    return any(type(hook).__module__.rpartition(".")[2] in _CACHES for hook in hooks)
