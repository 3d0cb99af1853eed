"""The powers of two by which the NVFP4 activations of each layer are scaled, as a calibration finds them.

Scaling by a power of two is exact, so that one that fits the largest magnitude of some runs takes nothing from the
smaller ones; and fixed before a run, it leaves a token's result independent of all other tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from accel.errors import AccelError
from accel.kernels.quantized_linear import fitting_scale
from accel.methods.layer_choice import Layer

_VERSION = 1
# What helps where a layer's activations do not fit the scale that is always there.
CALIBRATE = "calibrate, which finds a scale for each layer, or name them in modules_to_not_convert"


@dataclass(frozen=True)
class ScaleCalibration:
    """What was measured.

    Attributes:
        fingerprint: of the weights.
        rotate: whether layers were rotated.
        scales: per layer, the power of two by which its activations are scaled; others have the one that is always
            there.
    """

    fingerprint: str
    rotate: bool
    scales: dict[str, float]

    def check(self, method: str, fingerprint: str, rotate: bool) -> None:
        """Raises `AccelError` where it was made for something else."""
        if self.fingerprint != fingerprint:
            raise AccelError(f"{method}: the calibration was made for other weights: calibrate again")
        if self.rotate != rotate:
            raise AccelError(f"{method}: the calibration was made for rotate={self.rotate}: calibrate again")

    def describe(self) -> str:
        """What was found, in one line."""
        return f"NVFP4 activations of {len(self.scales)} layers are scaled by {range_of(self.scales)}"

    def save(self, path: str | Path) -> Path:
        """Writes a JSON file."""
        path = Path(path)
        path.write_text(json.dumps({"version": _VERSION, **asdict(self)}, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, method: str, path: str | Path) -> ScaleCalibration:
        """Reads what `save` wrote; raises `AccelError` where the file is none."""
        try:
            data = json.loads(Path(path).read_text())
            if "lines" in data:
                raise ValueError("it was made for mixed, and `accel calibrate nvfp4` makes one")
            if data.pop("version") != _VERSION:
                raise ValueError("it has another version")
            found = cls(**data)
            require_powers(found.scales)
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AccelError(f"{method} cannot read the calibration {path}: {error}") from error


class Largest:
    """The largest magnitude of each layer's activations, after rotation, over one run or several."""

    def __init__(self) -> None:
        self._largest: dict[str, float] = {}

    def add(self, layer: Layer, magnitude: float) -> None:
        """Takes that of one run."""
        before = self._largest.get(layer.name, 0.0)
        # A NaN stays one.
        self._largest[layer.name] = magnitude if math.isnan(magnitude) else max(before, magnitude)

    def scales(self) -> dict[str, float]:
        """The power that fits, by layer; one that was never called, or on zeros alone, tells nothing."""
        return {
            name: fitting_scale(torch.tensor(largest, dtype=torch.float32, device="cpu")).item()
            for name, largest in self._largest.items()
            if 0.0 < largest < math.inf
        }

    def calibration(self, method: str, fingerprint: str, rotate: bool) -> ScaleCalibration:
        """The powers for all that was seen; refuses a layer that was given what is not finite."""
        broken = next((name for name, largest in self._largest.items() if not math.isfinite(largest)), None)
        if broken is not None:
            raise AccelError(f"{method}: the activations of {broken} were not finite in the calibration runs")
        scales = self.scales()
        if not scales:
            raise AccelError(f"{method}: the calibration runs measured nothing: no layer with NVFP4 activations ran")
        return ScaleCalibration(fingerprint, rotate, scales)


def require_powers(scales: Mapping[str, float]) -> None:
    """Raises `ValueError` where a scale from a file is no power of two."""
    if not all(math.frexp(scale)[0] == 0.5 for scale in scales.values()):
        raise ValueError("a scale is no power of two")


def range_of(scales: Mapping[str, float]) -> str:
    """The scales in words."""
    return f"powers of two from {min(scales.values()):g} to {max(scales.values()):g}"
