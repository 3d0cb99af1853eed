"""What the user should know of quantized linears before they run: what is emulated, and where time is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from accel.kernels.quantized_linear import Activation, emulation
from accel.methods.layer_choice import Layer
from accel.methods.quantized_linear import QuantizedLinear
from accel.pipelines.sites import Denoiser

# Chosen by us from what bench.kernels prints of int8_linear: with a side under this, a product on a CPU gains nothing.
_SMALL_ON_CPU = 512


def foretell(
    layers: Iterable[tuple[Layer, Iterable[Activation]]],
    places: Mapping[str, torch.device | None],
    runs_in: Callable[[Activation, torch.device], Activation],
) -> list[str]:
    """One line for each thing to know; each layer comes with all formats that its activations may get.

    `places` says by denoiser where it will run, None where it is now; `runs_in` gives the format in which activations
    run on a device.
    """
    texts: dict[str, None] = {}
    replaced: dict[str, None] = {}
    devices: set[str] = set()
    small = work = 0
    for layer, activations in layers:
        module = layer.module
        assert isinstance(module, QuantizedLinear)
        device = places[layer.denoiser] or module.codes.device
        devices.add(device.type)
        if layer.modulation:
            continue
        for activation in activations:
            runs = runs_in(activation, device)
            if runs != activation:
                given, taken = activation.upper(), runs.upper()
                replaced[
                    f"{given} activations run in {taken} here: this device ({device.type}) has no instructions for "
                    "them; emulate=True computes them in software"
                ] = None
            found = emulation(runs, module.weight_format, device)
            if found is not None:
                texts[found] = None
        size = module.in_features * module.out_features
        work += size
        small += size if min(module.in_features, module.out_features) < _SMALL_ON_CPU else 0
    if "cpu" in devices and not texts and 2 * small > work:
        texts[f"most of these linears have under {_SMALL_ON_CPU} channels, too few to gain time on a CPU"] = None
    return [*replaced, *texts]


def place_of(denoiser: Denoiser) -> torch.device | None:
    """Where a denoiser that is offloaded now will run, None where it is not."""
    place = getattr(getattr(denoiser.module, "_hf_hook", None), "execution_device", None)
    return None if place is None else torch.device(place)
