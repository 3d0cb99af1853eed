"""Which linears bear 4-bit weights worst, so that a few of them may be spared: by the error of their weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from accel.kernels.quantized_linear import Activation, stored_weight
from accel.kernels.rotation import BLOCK
from accel.methods.base import Context
from accel.methods.layer_choice import Layer
from accel.methods.quantization import Quantization, QuantizationConfig
from accel.methods.quantized_linear import store
from accel.methods.stored_linear import StoredLinear
from accel.methods.weight_bytes import WeightFormat

StaticFormat = Literal["int8", "16bit"]


class SparingConfig(QuantizationConfig):
    """Settings of quantizations to NVFP4 that can spare some linears.

    Attributes:
        static_share: Fraction of the linears, those whose weights lose most in NVFP4, that are held in `static_format`.
        static_format: What these are held in: "int8" with INT8 activations, or "16bit" as they are.
    """

    static_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    static_format: StaticFormat = "int8"


class Sparing(Quantization):
    """A quantization to NVFP4 with the most sensitive linears spared."""

    config: SparingConfig

    def __init__(self, config: SparingConfig, context: Context) -> None:
        super().__init__(config, context)
        self._spared: dict[str, frozenset[int]] = {}

    @abstractmethod
    def low_activation(self, layer: Layer) -> Activation:
        """The format of the activations of a layer that is not spared, where nothing else is said."""

    def spared(self, layer: Layer) -> bool:
        """Whether the layer is among the most sensitive of its denoiser."""
        if isinstance(layer.module, StoredLinear):
            # What came stored otherwise was spared when it was.
            return layer.module.weight_format == "int8" and not layer.modulation
        if layer.denoiser not in self._spared:
            # The first question comes before any weight is converted.
            asked = [each for each in self.layers[layer.denoiser] if not each.modulation]
            number = round(self.config.static_share * len(asked))
            errors = sorted(((self._error(each), each.index) for each in asked), reverse=True) if number else []
            self._spared[layer.denoiser] = frozenset(index for _, index in errors[:number])
        return layer.index in self._spared[layer.denoiser]

    def weight_format(self, layer: Layer) -> WeightFormat | None:
        if not self.spared(layer):
            return "nvfp4"
        return "int8" if self.config.static_format == "int8" else None

    def default_activation(self, layer: Layer) -> Activation:
        if layer.modulation:
            return "plain"
        return "int8" if self.spared(layer) else self.low_activation(layer)

    def _error(self, layer: Layer) -> float:
        weight = layer.module.weight.detach()
        rotated = self.rotates(layer) and layer.module.in_features % BLOCK == 0
        return lost(weight, store(weight, "nvfp4", rotated), rotated)


def lost(weight: Tensor, stored: tuple[Tensor, ...], rotated: bool) -> float:
    """|W - Q(W)| / |W| of a weight and of what `store` made of it, in the norm of all numbers; 0 where it is none."""
    wide = weight.float()
    error = (wide - stored_weight(stored, rotated, wide.dtype)).norm() / wide.norm()
    return error.nan_to_num(0.0).item()
