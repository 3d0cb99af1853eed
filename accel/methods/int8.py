"""INT8 linears: weights and activations in 8 bits, a scale for each output channel and each token.

LLM.int8() (arXiv 2208.07339, section 2.2) without its outlier columns, which the block rotation of QuaRot (arXiv
2404.00456) spreads instead.
"""

from __future__ import annotations

from typing import ClassVar

from accel.kernels.quantized_linear import Activation
from accel.methods.base import register
from accel.methods.layer_choice import Layer
from accel.methods.quantization import Quantization, QuantizationConfig
from accel.methods.weight_bytes import WeightFormat


class Int8Config(QuantizationConfig):
    """Settings of INT8 linears, beside those of all quantizations.

    Attributes:
        rotate: Whether activations and weights are multiplied by a Hadamard matrix in blocks of 128 channels, which
            spreads outliers; layers whose channels 128 does not divide are not.
    """

    method: ClassVar[str] = "int8"
    weights: ClassVar[WeightFormat] = "int8"

    rotate: bool = True


@register(Int8Config)
class Int8(Quantization):
    """INT8 linears on one pipeline."""

    config: Int8Config

    def weight_format(self, layer: Layer) -> WeightFormat:
        return "int8"

    def default_activation(self, layer: Layer) -> Activation:
        return "plain" if layer.modulation else "int8"
