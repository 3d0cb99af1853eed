"""NVFP4 linears: weights and activations in 4-bit floats, a scale for each 16 of them.

The weights' scales are chosen by error ("Four Over Six", arXiv 2512.02010).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from accel.errors import AccelError
from accel.kernels.quantized_linear import Activation
from accel.methods.activation_scales import CALIBRATE, Largest, ScaleCalibration
from accel.methods.base import Context, register
from accel.methods.fingerprint import fingerprint
from accel.methods.layer_choice import Layer
from accel.methods.sensitive import Sparing, SparingConfig
from accel.pipelines.sites import require_all_tokens


class NVFP4Config(SparingConfig):
    """Settings of NVFP4 linears, beside those of all quantizations.

    Attributes:
        rotate: Whether activations and weights are multiplied by a Hadamard matrix in blocks of 128 channels. The
            groups of 16 isolate outliers already, and spreading them can cost more than it gains.
        calibration: File that `accel.measure.calibration.calibrate_nvfp4` wrote for this model, which tells by which
            power of two each layer's activations are scaled. Without, it is 1, or 4 where they are rotated.
    """

    method: ClassVar[str] = "nvfp4"
    files: ClassVar[tuple[str, ...]] = ("calibration",)

    rotate: bool = False
    calibration: str | None = None


@register(NVFP4Config)
class NVFP4(Sparing):
    """NVFP4 linears on one pipeline."""

    config: NVFP4Config
    remedy: ClassVar[str] = CALIBRATE

    def __init__(self, config: NVFP4Config, context: Context) -> None:
        super().__init__(config, context)
        self._largest: Largest | None = None

    def low_activation(self, layer: Layer) -> Activation:
        return "nvfp4"

    def measure(self) -> Largest:
        """From now on leaves activations as they are, and collects what a calibration is made of."""
        if self.config.calibration is not None:
            raise AccelError(f"{self.name}: a calibration is made without another")
        require_all_tokens(f"{self.name}: a calibration", self.context.facts.denoisers)
        self._largest = Largest()
        return self._largest

    def install(self) -> list[Callable[[], None]]:
        if self.config.calibration is not None:
            found = ScaleCalibration.load(self.name, self.config.calibration)
            found.check(self.name, fingerprint(self.name, self.context.facts.denoisers), self.config.rotate)
            self.scales = found.scales
        return super().install()

    def start_run(self, num_steps: int) -> None:
        super().start_run(num_steps)
        if self._largest is not None:
            for layer in self._in_four_bits():
                self._module(layer).choose("plain", look=2)

    def end_run(self) -> None:
        if self._largest is not None and self._running:
            for layer in self._in_four_bits():
                self._largest.add(layer, self._module(layer).seen[4].item())
        super().end_run()

    def _in_four_bits(self) -> list[Layer]:
        return [layer for layer in self._all() if self.default_activation(layer) == "nvfp4"]
