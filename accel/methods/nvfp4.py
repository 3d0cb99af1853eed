"""NVFP4 linears: weights and activations in 4-bit floats, a scale for each 16 of them.

The weights' scales are chosen by error ("Four Over Six", arXiv 2512.02010).
"""

from __future__ import annotations

from typing import ClassVar

from accel.kernels.quantized_linear import Activation
from accel.methods.base import register
from accel.methods.layer_choice import Layer
from accel.methods.sensitive import Sparing, SparingConfig


class NVFP4Config(SparingConfig):
    """Settings of NVFP4 linears, beside those of all quantizations.

    Attributes:
        rotate: Whether activations and weights are multiplied by a Hadamard matrix in blocks of 128 channels. The
            groups of 16 isolate outliers already, and spreading them can cost more than it gains.
    """

    method: ClassVar[str] = "nvfp4"

    rotate: bool = False


@register(NVFP4Config)
class NVFP4(Sparing):
    """NVFP4 linears on one pipeline."""

    config: NVFP4Config

    def low_activation(self, layer: Layer) -> Activation:
        return "nvfp4"
