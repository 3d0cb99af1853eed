"""NVFP4 weights beside activations as they are: 4.5 bits for each weight, to save memory."""

from __future__ import annotations

from typing import ClassVar

from accel.kernels.quantized_linear import Activation
from accel.methods.base import register
from accel.methods.layer_choice import Layer
from accel.methods.sensitive import Sparing, SparingConfig


class NVFP4WeightConfig(SparingConfig):
    """Settings of NVFP4 weights, which are those of all quantizations."""

    method: ClassVar[str] = "nvfp4-weight"


@register(NVFP4WeightConfig)
class NVFP4Weight(Sparing):
    """NVFP4 weights on one pipeline."""

    config: NVFP4WeightConfig

    def low_activation(self, layer: Layer) -> Activation:
        return "plain"
