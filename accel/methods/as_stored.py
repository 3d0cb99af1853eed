"""Whether the settings of a quantization fit weights that were stored before it came."""

from __future__ import annotations

from collections.abc import Iterable

from accel.errors import AccelError
from accel.kernels.nvfp4 import GROUP
from accel.methods.base import registered
from accel.methods.layer_choice import Layer, linears, matches
from accel.methods.quantization_settings import QuantizationConfig
from accel.methods.stored_linear import StoredLinear
from accel.pipelines.sites import Denoiser


def require_as_stored(
    config: QuantizationConfig, denoiser: Denoiser, layers: list[Layer], modulation: Iterable[str]
) -> None:
    """Raises `AccelError` where the settings ask for weights other than the stored ones; nothing is quantized again.

    A setting that was left at its default asks for nothing, and neither does `keep_original`, for there is no original.
    """
    stored = {layer.path: layer for layer in layers}
    _require_format(config, denoiser, layers)
    refuse = _Refusal(config.method, f"pipe.{denoiser.name}")
    rotated = any(isinstance(layer.module, StoredLinear) and layer.module.rotated for layer in layers)
    default = type(config).model_fields.get("rotate")
    if default is not None and config.rotates not in (default.default, rotated):
        refuse("rotate", f"they are {'' if rotated else 'not '}rotated")
    _require_spared(config, denoiser, refuse)
    for path in stored:
        if _named(path, config.modules_to_not_convert) and not _named(path, config.modules_to_convert):
            refuse("modules_to_not_convert", f"that of {path} is among them")
    for path, module in linears(denoiser.module):
        if path in stored or module.in_features % GROUP:
            continue
        if _named(path, config.modules_to_convert):
            refuse("modules_to_convert", f"that of {path} is not among them")
        if config.quantize_modulation and _named(path, modulation):
            refuse("quantize_modulation", f"that of {path} is not among them")


class _Refusal:
    def __init__(self, method: str, model: str) -> None:
        self._start = f"{method}: the weights of {model} came stored, and "

    def __call__(self, setting: str, reason: str) -> None:
        raise AccelError(
            f"{self._start}{reason}: leave {setting} out, or load the original model and say it in the "
            "quantization_config there"
        )


def _require_format(config: QuantizationConfig, denoiser: Denoiser, layers: list[Layer]) -> None:
    judged = [layer.module for layer in layers if not layer.modulation]
    formats = {module.weight_format for module in judged if isinstance(module, StoredLinear)}
    # Beside others in NVFP4, those in INT8 were spared.
    found = "nvfp4" if "nvfp4" in formats else "int8"
    if formats and found != config.weights:
        fitting = [
            repr(name)
            for name, entry in registered().items()
            if issubclass(entry.config, QuantizationConfig) and entry.config.weights == found
        ]
        raise AccelError(
            f"{config.method}: the weights of pipe.{denoiser.name} came stored in {found.upper()}, and "
            f"{config.method} has them in {config.weights.upper()}: quantize={' or '.join(sorted(fitting))} takes "
            "them as they are"
        )


def _require_spared(config: QuantizationConfig, denoiser: Denoiser, refuse: _Refusal) -> None:
    told = getattr(getattr(denoiser.module, "config", None), "quantization_config", None)
    share, kind = getattr(told, "static_share", 0.0), getattr(told, "static_format", "int8")
    asked = getattr(config, "static_share", 0.0)
    if asked and asked != share:
        refuse("static_share", f"it was {share:g} then" if share else "none was spared then")
    if asked and getattr(config, "static_format", kind) != kind:
        refuse("static_format", f"it was {kind!r} then")


def _named(path: str, entries: Iterable[str]) -> bool:
    return any(matches(path, entry) for entry in entries)
