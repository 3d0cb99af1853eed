"""What the activations of the quantized layers were like in a run, told where they did not fit their formats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from accel.kernels.quantized_linear import SEEN
from accel.methods.layer_choice import Layer
from accel.methods.quantized_linear import QuantizedLinear
from accel.runtime.readback import Readback

_LARGEST_SCALE = 448.0
# Below, E4M3 has fewer and fewer places.
_SMALLEST_SCALE = 2.0**-6


class ActivationWatch:
    """Of one run; `layers` are by their denoiser, each with a `QuantizedLinear`."""

    def __init__(self, layers: Mapping[str, Sequence[Layer]]) -> None:
        self._layers = layers
        # What the layers of a denoiser have seen after each call, on its way to the host.
        self._seen: list[tuple[str, Readback]] = []
        self._in_nvfp4: set[str] = set()

    def ran_in_nvfp4(self, layer: Layer) -> None:
        """Hears of a layer whose activations were NVFP4."""
        self._in_nvfp4.add(layer.name)

    def called(self, denoiser: str) -> None:
        """Takes what the layers of a denoiser have seen by the end of a call."""
        modules = [layer.module for layer in self._layers[denoiser] if isinstance(layer.module, QuantizedLinear)]
        if modules:
            device = modules[0].seen.device
            self._seen.append((denoiser, Readback(torch.stack([each.seen.to(device) for each in modules]).flatten())))

    def broken(self) -> str | None:
        """The layers whose activations were not finite in the first call that had any, None where no call had."""
        for denoiser, back in self._seen:
            values = _by_layer(back)
            names = [
                layer.name
                for layer, seen in zip(self._layers[denoiser], values, strict=True)
                if not all(map(math.isfinite, seen[:2]))
            ]
            if names:
                return f"activations of {in_short(names)} were not finite, and so are the results"
        return None

    def unfit(self, remedy: str) -> tuple[str | None, str | None]:
        """The layers with activations too large for NVFP4 with their scales, and those too small, each with what helps
        there; None where there is none."""
        largest: dict[str, float] = {}
        for denoiser, back in self._seen:
            # Each call has the largest of those before it too, until one is not finite.
            for layer, seen in zip(self._layers[denoiser], _by_layer(back), strict=True):
                if math.isfinite(seen[1]):
                    largest[layer.name] = seen[1]
        cut = [name for name, scale in largest.items() if scale >= _LARGEST_SCALE]
        lost = [name for name in largest if name in self._in_nvfp4 and largest[name] < _SMALLEST_SCALE]
        return (
            f"activations of {in_short(cut)} were too large for NVFP4 here and were cut: {remedy}" if cut else None,
            f"activations of {in_short(lost)} were zero or too small for NVFP4 here: {remedy}" if lost else None,
        )


def _by_layer(back: Readback) -> list[list[float]]:
    values, size = back.tolist(), len(SEEN)
    return [values[start : start + size] for start in range(0, len(values), size)]


def in_short(names: list[str]) -> str:
    """The first of some layers, and the number of the others."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} other layers"
