"""Which linears of a model are stored while it loads, and how: as the quantizations would on the loaded pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from accel.errors import AccelError
from accel.integrations.config import StoredWeightsConfig
from accel.kernels.rotation import BLOCK
from accel.methods.layer_choice import check_names, choose_layers
from accel.methods.weight_bytes import WeightFormat
from accel.pipelines.sites import inspect_denoiser


@dataclass(frozen=True)
class Plan:
    """How one linear is stored."""

    weight_format: WeightFormat
    rotated: bool
    # Whether it may be spared, where the settings say that some are.
    spareable: bool = False


def plan_layers(config: StoredWeightsConfig, model: nn.Module) -> dict[str, Plan]:
    """By the path of each linear that is stored; the model may be on the meta device.

    Raises:
        AccelError: no family has the model, a list names no linear, or nothing is left to store.
    """
    family, denoiser = inspect_denoiser(model)
    for setting in ("modules_to_not_convert", "modules_to_convert"):
        check_names(type(model).__name__, setting, getattr(config, setting), [denoiser])
    layers, _ = choose_layers(
        denoiser,
        left=(*family.modules_to_not_convert, *config.modules_to_not_convert),
        modulation=family.modulation,
        take_modulation=config.quantize_modulation,
        taken=config.modules_to_convert,
    )
    if not layers:
        raise AccelError(f"{type(model).__name__}: modules_to_not_convert leaves no linear to store: name fewer")
    return {
        layer.path: Plan("nvfp4", False)
        if layer.modulation
        else Plan(
            config.weights, config.rotate and layer.module.in_features % BLOCK == 0, spareable=config.weights == "nvfp4"
        )
        for layer in layers
    }
