"""Fusing an adapter, or projections, into weights that are stored quantized, refused before anything is half-done."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from accel.errors import AccelError
from accel.pipelines.sites import Denoiser
from accel.runtime.runs import InstanceMethod

# Of diffusers, which change weights in place or make new ones of them.
_FUSIONS = ("fuse_lora", "unfuse_lora", "fuse_qkv_projections")


def refuse_fusions(denoiser: Denoiser, stored_by: str | None) -> list[Callable[[], None]]:
    """Refuses them from now on; returns what undoes it. `stored_by` is the method, None where weights came stored."""
    module = denoiser.module
    undo = [
        InstanceMethod(module, method, partial(_refuse, stored_by, method)).remove
        for method in _FUSIONS
        if hasattr(module, method)
    ]
    # A fused adapter forgets that it is before it takes itself out of the weight, which it cannot now.
    undo += [
        InstanceMethod(part, "unmerge", partial(_refuse, stored_by, "unfuse_lora")).remove
        for part in module.modules()
        if getattr(part, "merged", False) is True and hasattr(part, "unmerge")
    ]
    return undo


def _refuse(stored_by: str | None, method: str, original: Any, *args: Any, **kwargs: Any) -> Any:
    if stored_by is None:
        how = f"came stored: {method} needs the original model"
    else:
        how = f"are stored by {stored_by}: call accel.disable(pipe), then {method}, then accel.enable"
    raise AccelError(
        f"{method} changes weights, and those of this model {how}; an adapter that is loaded and not fused works as it "
        "is"
    )
