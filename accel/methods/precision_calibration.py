"""How far 4-bit activations are off in each layer, as a line over the change of its block at the step before.

6Bit-Diffusion (arXiv 2603.18742, section 4.1) fits alpha and beta for each layer by least squares. The paper does not
say of what the error is; here it is |Q(X) Wᵀ - X Wᵀ| / |X Wᵀ| with the stored weight on both sides, so that only the
activations differ. Where a line explains little of a layer's errors, their mean stands for all of them. Beside these,
the power of two is measured that fits each layer's magnitudes as the fixed scale of NVFP4; errors are those with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from accel.errors import AccelError
from accel.kernels.quantized_linear import Activation
from accel.methods.activation_scales import Largest, range_of, require_powers
from accel.methods.layer_choice import Layer

_VERSION = 2
# Files of the first have no scales.
_READ = (1, _VERSION)
_QUANTILES = 101
# With less of the variance explained, the line is that of the mean. Chosen by us.
_LEAST_EXPLAINED = 0.3


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        fingerprint: of the weights.
        low: the format whose errors these are.
        rotate: whether layers were rotated.
        lines: per layer (alpha, beta).
        explained: per layer, the share of the variance of its errors that the change of its block explains.
        quantiles: of the predicted errors of all layers and steps, from the least to the largest.
        scales: per layer, the power of two by which NVFP4 activations are scaled; others have the one that is always
            there.
    """

    fingerprint: str
    low: Activation
    rotate: bool
    lines: dict[str, tuple[float, float]]
    explained: dict[str, float]
    quantiles: list[float]
    scales: dict[str, float] = field(default_factory=dict)

    def threshold(self, share: float) -> float:
        """The predicted error under which the given share of layers and steps lies."""
        place = min(max(share, 0.0), 1.0) * (len(self.quantiles) - 1)
        below = min(int(place), len(self.quantiles) - 2)
        low, high = self.quantiles[below : below + 2]
        return low + (high - low) * (place - below)

    def check(self, fingerprint: str, low: Activation, rotate: bool) -> None:
        """Raises `AccelError` where it was made for something else."""
        for what, measured, here in (
            ("other weights", self.fingerprint, fingerprint),
            (f"low={self.low!r}", self.low, low),
            (f"rotate={self.rotate}", self.rotate, rotate),
        ):
            if measured != here:
                raise AccelError(f"mixed: the calibration was made for {what}: calibrate again")

    def describe(self) -> str:
        """What was found, in one line."""
        follows = sum(share >= _LEAST_EXPLAINED for share in self.explained.values())
        text = (
            f"the errors of {follows} of {len(self.lines)} layers follow the changes of their blocks; "
            "the others are given the means of theirs"
        )
        if not self.scales:
            return text
        return f"{text}; NVFP4 activations are scaled by {range_of(self.scales)}"

    def save(self, path: str | Path) -> Path:
        """Writes a JSON file."""
        path = Path(path)
        path.write_text(json.dumps({"version": _VERSION, **asdict(self)}, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Reads what `save` wrote; raises `AccelError` where the file is none."""
        try:
            data = json.loads(Path(path).read_text())
            if data.pop("version") not in _READ:
                raise ValueError("it has another version")
            if "lines" not in data:
                raise ValueError("it has no errors of layers, and `accel calibrate mixed` makes one that has")
            lines = {name: (float(alpha), float(beta)) for name, (alpha, beta) in data.pop("lines").items()}
            found = cls(lines=lines, **data)
            if len(found.quantiles) < 2:
                raise ValueError("it has no quantiles")
            require_powers(found.scales)
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AccelError(f"mixed cannot read the calibration {path}: {error}") from error


class Measurements:
    """Collects, over one run or several, what a calibration is made of."""

    def __init__(self, low: Activation) -> None:
        self._low = low
        self._seen: dict[str, list[tuple[float, Tensor]]] = {}
        # Of each layer's activations in the runs.
        self.largest = Largest()

    def add(self, layers: Sequence[Layer], change: float, errors: Tensor) -> None:
        """Takes the errors, one for each layer, of a block that changed so much at the step before."""
        for layer, error in zip(layers, errors, strict=True):
            self._seen.setdefault(layer.name, []).append((change, error))

    def calibration(self, fingerprint: str, rotate: bool) -> Calibration:
        """The lines through all that was seen."""
        if not self._seen:
            raise AccelError("mixed: the calibration runs measured nothing: use two steps or more")
        lines, explained, predicted = {}, {}, []
        for name, seen in self._seen.items():
            changes = torch.tensor([change for change, _ in seen], dtype=torch.float64, device="cpu")
            errors = torch.stack([error for _, error in seen]).double().cpu()
            usable = changes.isfinite() & errors.isfinite()
            if not usable.any():
                raise AccelError(f"mixed: the activations of {name} were not finite in the calibration runs")
            alpha, beta, explained[name] = _line(changes[usable], errors[usable])
            lines[name] = alpha, beta
            predicted.append(alpha * changes[usable] + beta)
        shares = torch.linspace(0, 1, _QUANTILES, dtype=torch.float64, device="cpu")
        quantiles = torch.cat(predicted).quantile(shares)
        scales = self.largest.scales() if self._low == "nvfp4" else {}
        return Calibration(fingerprint, self._low, rotate, lines, explained, quantiles.tolist(), scales)


def _line(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Slope, intercept and explained share of the line through points by least squares."""
    apart, errors = x - x.mean(), y - y.mean()
    spread, scatter = apart.square().sum(), errors.square().sum()
    if spread > 0 and scatter > 0:
        slope = (apart * errors).sum() / spread
        share = (slope.square() * spread / scatter).item()
        if share >= _LEAST_EXPLAINED:
            return slope.item(), (y.mean() - slope * x.mean()).item(), share
        return 0.0, y.mean().item(), share
    return 0.0, y.mean().item(), 0.0
