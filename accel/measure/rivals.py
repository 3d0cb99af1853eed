"""What other libraries have for a pipeline, to be measured beside Accel's methods.

The caches of diffusers, cache-dit's DBCache, torchao's INT8 and FlexAttention. Each goes on and comes off through its
own public functions, as far as there are any. What it leaves behind is named, and put back.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from accel.errors import AccelError
from accel.measure.held_memory import held_bytes
from accel.measure.snapshot import Snapshot
from accel.methods.base import nearest
from accel.pipelines.sites import inspect_pipeline

_DIFFUSERS = {
    "first-block": "FirstBlockCacheConfig",
    "magcache": "MagCacheConfig",
    "taylorseer": "TaylorSeerCacheConfig",
    "seacache": "SeaCacheConfig",
}
_DBCACHE, _TORCHAO, _FLEX = "dbcache", "torchao-int8", "flex"
# Of what is no part of diffusers: the distribution that has it, and the module that it is imported as.
_LIBRARIES = {_DBCACHE: ("cache-dit", "cache_dit"), _TORCHAO: ("torchao", "torchao"), _FLEX: ("torch", "torch")}
_REFUSED = {
    "pyramid": "pyramid broadcast gives one guidance branch the attention of the other where they are called apart",
    "fastercache": "FasterCache needs guidance in one batch",
}
RIVALS = (*_DIFFUSERS, *_LIBRARIES)


@dataclass
class RivalRun:
    """What is found of a rival while it is on, and after.

    Attributes:
        library: the distribution that it is of, with its version.
        held_bytes: the most that its tensors took at the end of a denoiser's call.
        left_behind: names of attributes that its own undo left changed, once it is off.
    """

    library: str
    held_bytes: int = 0
    left_behind: list[str] = field(default_factory=list)


def missing(name: str) -> str | None:
    """Why a rival cannot be measured here, or None where it can."""
    if name in _LIBRARIES:
        distribution, module = _LIBRARIES[name]
        if importlib.util.find_spec(module) is None:
            return f'{distribution} is not installed: pip install "dit-accel[rivals]"'
    return None


@contextmanager
def rival(pipe: Any, name: str, **settings: Any) -> Iterator[RivalRun]:
    """Puts a rival on a pipeline that has run before, and takes it off again without a trace.

    Args:
        pipe: a diffusers pipeline of a family that Accel knows.
        name: one of `RIVALS`.
        **settings: of diffusers' configuration of that name; a dtype may be given by its name, and TaylorSeer predicts
            the outputs of whole blocks unless told otherwise, since its own choice of modules finds none in Wan. For
            "dbcache" those of cache-dit's `DBCacheConfig`, where one block is the probe unless told otherwise, and
            `taylorseer`, the order of its TaylorSeer calibrator, None for none. For "torchao-int8" those of torchao's
            `Int8DynamicActivationInt8WeightConfig`, put on every linear of the denoisers; it leaves the inductor's
            settings, which are the whole process's, unless told otherwise. "flex" has none.

    Raises:
        AccelError: an unknown name, a rival that is not installed, cannot work with separate guidance, or has no place
            to go on this model.
        TypeError, ValueError: from the rival, for settings that it does not have.
    """
    if name not in RIVALS:
        raise AccelError(f"no rival {name!r}: {_REFUSED[name]}" if name in _REFUSED else _unknown(name))
    if (reason := missing(name)) is not None:
        raise AccelError(reason)
    denoisers = [denoiser.module for denoiser in inspect_pipeline(pipe).denoisers]
    distribution = _LIBRARIES[name][0] if name in _LIBRARIES else "diffusers"
    found = RivalRun(f"{distribution} {version(distribution)}")
    snapshot = Snapshot(pipe)
    put_on = {_DBCACHE: _dbcache, _TORCHAO: _torchao, _FLEX: _flex}.get(name, _diffusers)
    try:
        off = put_on(pipe, denoisers, name, settings)
    except BaseException:
        snapshot.restore()
        raise

    def measure(*_: Any) -> None:
        found.held_bytes = max(found.held_bytes, held_bytes(*_states(pipe, denoisers)))

    handles = [module.register_forward_hook(measure) for module in denoisers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        off()
        found.left_behind = snapshot.restore()


def mag_ratios(pipe: Any, steps: int, run: Callable[[], object]) -> list[float]:
    """MagCache's ratios for a pipeline, from its own calibration in one plain run: `run()` calls the pipeline.

    Of the guidance branch that is called first, as its authors use one curve for all.
    """
    denoiser = inspect_pipeline(pipe).denoisers[0]
    ratios: list[float] = []

    def read(*_: Any) -> None:
        managers = [h.state_manager for h in _hooks([denoiser.module]) if hasattr(h, "state_manager")]
        states = next(iter(managers[0]._state_cache.values()))
        ratios[:] = states.calibration_ratios

    # For one step more than there are, since at the last one it prints the ratios and forgets them.
    with rival(pipe, "magcache", calibrate=True, num_inference_steps=steps + 1):
        handle = denoiser.module.register_forward_hook(read)
        try:
            run()
        finally:
            handle.remove()
    if len(ratios) != steps:
        raise AccelError(f"MagCache's calibration saw {len(ratios)} of {steps} steps: give it the steps of the run")
    return ratios


def _unknown(name: str) -> str:
    return f"no rival {name!r}{nearest(name, RIVALS)}"


def _diffusers(pipe: Any, denoisers: list[nn.Module], name: str, settings: dict[str, Any]) -> Callable[[], None]:
    import diffusers

    if name == "taylorseer":
        settings = {"cache_identifiers": [r"blocks\.\d+"], **settings}
        if settings.get("use_lite_mode"):
            settings.pop("cache_identifiers")
    settings = {k: getattr(torch, v) if k.endswith("dtype") and isinstance(v, str) else v for k, v in settings.items()}
    modules: list[Any] = list(denoisers)
    for module in modules:
        module.enable_cache(getattr(diffusers, _DIFFUSERS[name])(**settings))

    def off() -> None:
        for module in modules:
            # After an exception in a run, its state is still there.
            module._reset_stateful_cache()
            module.disable_cache()

    return off


def _dbcache(pipe: Any, denoisers: list[nn.Module], name: str, settings: dict[str, Any]) -> Callable[[], None]:
    import cache_dit

    order = settings.pop("taylorseer", None)
    config = cache_dit.DBCacheConfig(**{"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, **settings})
    calibrator = None if order is None else cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order)
    with _quiet("cache_dit"):
        cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)

    def off() -> None:
        with _quiet("cache_dit"):
            cache_dit.disable_cache(pipe)

    return off


def _torchao(pipe: Any, denoisers: list[nn.Module], name: str, settings: dict[str, Any]) -> Callable[[], None]:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    config = Int8DynamicActivationInt8WeightConfig(**{"set_inductor_config": False, **settings})
    for module in denoisers:
        quantize_(module, config)

    def off() -> None:
        """It has no undo of its own: the snapshot has the weights, and puts them back."""

    return off


def _flex(pipe: Any, denoisers: list[nn.Module], name: str, settings: dict[str, Any]) -> Callable[[], None]:
    from diffusers import attention_backend

    if settings:
        raise AccelError(f"FlexAttention has no setting {next(iter(settings))!r}; leave it out")
    processors = [getattr(module, "processor", None) for one in denoisers for module in one.modules()]
    if not any(hasattr(processor, "_attention_backend") for processor in processors):
        raise AccelError("FlexAttention cannot go on this model: none of its attention takes a backend of diffusers")
    modules: list[Any] = list(denoisers)
    # It also makes it that of every other model in this process; the block puts back what was there.
    with attention_backend(), _quiet("diffusers"):
        for module in modules:
            module.set_attention_backend("flex")

    def off() -> None:
        with _quiet("diffusers"):
            for module in modules:
                module.reset_attention_backend()

    return off


@contextmanager
def _quiet(package: str) -> Iterator[None]:
    """Without a package's lines of progress, each of whose loggers prints for itself."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(package)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _states(pipe: Any, denoisers: list[nn.Module]) -> list[Any]:
    return [*_hooks(denoisers), getattr(pipe, "_context_manager", None)]


def _hooks(denoisers: list[nn.Module]) -> list[Any]:
    """diffusers' hooks on the denoisers and the modules in them."""
    registries = (getattr(module, "_diffusers_hook", None) for denoiser in denoisers for module in denoiser.modules())
    return [hook for registry in registries if registry is not None for hook in registry.hooks.values()]
