"""The settings of mixed precision, and what of them cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from accel.errors import AccelError
from accel.kernels.quantized_linear import Activation
from accel.methods.base import Toward
from accel.methods.needs import Slot
from accel.methods.quantized_report import BITS
from accel.methods.sensitive import SparingConfig
from accel.pipelines.facts import Family

# As a setting names a format of activations.
_ACTIVATIONS: dict[str, Activation] = {"nvfp4": "nvfp4", "int8": "int8", "16bit": "plain"}
# The paper reports about as many.
_TARGET_BITS = 6.0


class MixedPrecisionConfig(SparingConfig):
    """Settings of mixed precision, beside those of all quantizations.

    Attributes:
        low: Format of the activations that a layer gets where it bears it: "nvfp4", or "int8" beside `high="16bit"`.
            Naming "nvfp4" asks for no emulation of it; `emulate` does.
        high: Format of the activations where it does not: "int8", or "16bit" for activations as they are.
        target_bits: Mean bits of the activations over all computed layers and steps, those of a fixed format included
            and modulation apart. None is 6, which the paper reports about, or half way between the formats where 6
            does not lie between them; beside `threshold`, nothing.
        threshold: Predicted error (with a calibration) or change of the block (without) above which a layer gets the
            high format; None lets `target_bits` decide.
        calibration: File that `accel.measure.calibration.calibrate_mixed` wrote for this model, which also tells by
            which power of two each layer's NVFP4 activations are scaled. Without, the errors of the layers are measured
            at the first step of each run, those with the largest get the high format, and the power is 1, or 4 where
            activations are rotated.
        rotate: Whether activations and weights are multiplied by a Hadamard matrix in blocks of 128 channels, which
            spreads outliers; INT8 needs it more than NVFP4 does. As published.
        purify: Whether a cache of block changes beside it is kept clean: no quantization of inputs with outliers where
            a change is to be kept, and the high format after a skipped step. As published.
        outlier_ratio: max|x| / mean|x| above which an input has outliers. 25 as published.
        emulate: Whether NVFP4 activations are computed in software where the device has no instructions for them, which
            is slower and less exact than INT8. Without, what the rule gives NVFP4 runs in INT8 there.
    """

    method: ClassVar[str] = "mixed"
    files: ClassVar[tuple[str, ...]] = ("calibration",)
    levers: ClassVar[dict[str, tuple[str, ...]]] = {
        "nvfp4": ("target_bits", "threshold", "low", "modules_to_not_convert"),
        "int8": ("target_bits", "threshold", "high", "modules_to_not_convert"),
        "plain": ("target_bits", "high", "modules_to_not_convert"),
    }
    toward_plain: ClassVar[dict[str, Toward]] = {
        **SparingConfig.toward_plain,
        "target_bits": "raise",
        "threshold": "lower",
    }

    low: Literal["nvfp4", "int8"] = "nvfp4"
    high: Literal["int8", "16bit"] = "int8"
    target_bits: Annotated[float, Field(ge=4.0, le=16.0)] | None = None
    threshold: Annotated[float, Field(ge=0.0)] | None = None
    calibration: str | None = None
    rotate: bool = True
    purify: bool = True
    outlier_ratio: Annotated[float, Field(ge=1.0)] = 25.0
    emulate: bool = False

    @property
    def formats(self) -> tuple[Activation, Activation]:
        """The low and the high format of the activations."""
        return _ACTIVATIONS[self.low], _ACTIVATIONS[self.high]

    def resolved(self, family: Family, beside: frozenset[Slot] = frozenset()) -> Self:
        """The same with the `target_bits` that hold where nothing is said."""
        if self.threshold is not None or self.target_bits is not None:
            return self
        low, high = (BITS[activation] for activation in self.formats)
        target = _TARGET_BITS if low <= _TARGET_BITS <= high else (low + high) / 2
        return self.model_copy(update={"target_bits": target})

    def wanted_share(self, choosing: int, fixed: Sequence[Activation] = ()) -> float:
        """The fraction of calls of `choosing` layers that get the high format so that the mean is `target_bits`, beside
        others whose formats are fixed; below 0 or above 1 where these alone are too many bits or too few."""
        low, high = (BITS[activation] for activation in self.formats)
        assert self.target_bits is not None
        bits = self.target_bits * (choosing + len(fixed)) - sum(BITS[activation] for activation in fixed)
        return (bits / choosing - low) / (high - low) if choosing else 0.0


def check(config: MixedPrecisionConfig) -> None:
    """Raises `AccelError` where settings, after `resolved`, do not go together."""
    low, high = (BITS[activation] for activation in config.formats)
    if low >= high:
        raise AccelError(f"mixed: low={config.low!r} is not below high={config.high!r}: set high='16bit'")
    if config.threshold is not None and config.target_bits is not None:
        raise AccelError(
            f"mixed: threshold={config.threshold:g} decides alone, and target_bits={config.target_bits:g} would do "
            "nothing: leave one of them out"
        )
    if config.target_bits is not None and not low <= config.target_bits <= high:
        nearest = low if config.target_bits < low else high
        raise AccelError(
            f"mixed: target_bits={config.target_bits:g} does not lie between low={config.low!r} with {low} and "
            f"high={config.high!r} with {high} (nearest: {nearest})"
        )
