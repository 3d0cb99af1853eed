"""When FlashBlock has to compute its part anew: for each layer, step and head, as measured (arXiv 2602.05305).

A calibration run computes everything and compares, for every head, the attention over the blocks that are not exact, or
over the chunks before, with what was kept of it: the cosine of the outputs and the change of the log-sum-exp, means
over batch, tokens and visits. A head under the one bound or over the other is computed anew at that step of later runs;
the others are not.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.errors import AccelError
from accel.runtime.clock import Moment

_VERSION = 2


@dataclass(frozen=True)
class Conditions:
    """What a calibration holds for.

    Attributes:
        fingerprint: of the weights.
        num_steps: of a run or a chunk.
        chosen_by: the method that chose the exact blocks, with its density, block_size and tiling; all four are None
            where no blocks are chosen.
        similarity, lse_drift: the bounds.
    """

    fingerprint: str
    num_steps: int
    chosen_by: str | None
    density: float | None
    block_size: int | None
    tiling: str | None
    similarity: float
    lse_drift: float


@dataclass(frozen=True)
class Calibration:
    """What was measured: per "denoiser/step/layer" the cosine and the drift of every head."""

    conditions: Conditions
    cosine: dict[str, list[float]]
    drift: dict[str, list[float]]

    def heads(self, moment: Moment, layer: int) -> list[bool] | None:
        """Which heads are to be computed anew, or None where nothing was measured."""
        place = place_of(moment, layer)
        if place not in self.cosine:
            return None
        return self._anew(place)

    def on_device(self, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
        """For every place the heads that are to be computed anew, as bool (H,) and as their numbers, int64.

        In two copies to the device for all of them, because it waits for each.
        """
        anew = {place: self._anew(place) for place in self.cosine}
        numbers = {place: [head for head, one in enumerate(heads) if one] for place, heads in anew.items()}
        flags, numbered = (
            torch.tensor(list(chain.from_iterable(lists.values())), dtype=dtype, device=device).split(
                [len(heads) for heads in lists.values()]
            )
            for lists, dtype in ((anew, torch.bool), (numbers, torch.int64))
        )
        return dict(zip(anew, zip(flags, numbered, strict=True), strict=True))

    def due(self, moment: Moment) -> bool:
        """Whether any head of any layer is to be computed anew at this step."""
        start = place_of(moment, 0).removesuffix("0")
        layers = [int(place.removeprefix(start)) for place in self.cosine if place.startswith(start)]
        return any(any(self.heads(moment, layer) or ()) for layer in layers)

    def check(self, **conditions: Any) -> None:
        """Raises `AccelError` where one of the conditions is another than at the calibration."""
        for name, value in conditions.items():
            measured = getattr(self.conditions, name)
            if measured != value:
                what = f"{name}={measured}, not {value}"
                if name == "fingerprint":
                    what = "other weights"
                elif name == "chosen_by":
                    what = f"blocks that {measured} chooses, not {value}"
                raise AccelError(f"flashblock: the calibration was made for {what}: calibrate again")

    def describe(self) -> str:
        """What was found, in one line."""
        anew = [head for place in self.cosine for head in self._anew(place)]
        return (
            f"{sum(anew) / len(anew):.1%} of the heads are to be computed anew where something is kept, "
            f"in runs of {self.conditions.num_steps} steps"
        )

    def save(self, path: str | Path) -> Path:
        """Writes a JSON file."""
        path = Path(path)
        path.write_text(json.dumps({"version": _VERSION, **asdict(self)}, indent=1) + "\n")
        return path

    def _anew(self, place: str) -> list[bool]:
        bounds = self.conditions
        pairs = zip(self.cosine[place], self.drift[place], strict=True)
        # Written so that a NaN means anew.
        return [not (cosine >= bounds.similarity and drift <= bounds.lse_drift) for cosine, drift in pairs]

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Reads what `save` wrote; raises `AccelError` where the file is none."""
        try:
            data = json.loads(Path(path).read_text())
            if data.pop("version") != _VERSION:
                raise ValueError("it has another version")
            return cls(Conditions(**data.pop("conditions")), **data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AccelError(f"flashblock cannot read the calibration {path}: {error}") from error


class Measurements:
    """Collects, over one run or several, what a calibration is made of."""

    def __init__(self, similarity: float, lse_drift: float) -> None:
        self.similarity = similarity
        self.lse_drift = lse_drift
        self.conditions: dict[str, Any] = {}
        self._seen: dict[str, list[Tensor]] = {}

    def see(self, moment: Moment, layer: int, kept: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor]) -> Tensor:
        """Compares outputs (B, S, H, D) and their log-sum-exps (B, H, S); gives the heads that moved, bool (H,)."""
        (old, old_lse), (new, new_lse) = kept, fresh
        # No block at all is left out where both sums are minus infinity: nothing can have moved there.
        nothing = old_lse.isneginf() & new_lse.isneginf()
        cosine = F.cosine_similarity(old.float(), new.float(), dim=-1).transpose(1, 2)
        cosine = torch.where(nothing, 1.0, cosine).mean((0, 2))
        drift = torch.where(nothing, 0.0, (new_lse - old_lse).abs()).mean((0, 2))
        self._seen.setdefault(place_of(moment, layer), []).append(torch.stack([cosine, drift]))
        return ~((cosine >= self.similarity) & (drift <= self.lse_drift))

    def calibration(self, fingerprint: str) -> Calibration:
        """The means of all that was seen."""
        if not self._seen:
            raise AccelError("flashblock: the calibration runs reused nothing: use more steps")
        means = {place: torch.stack(seen).mean(0).tolist() for place, seen in self._seen.items()}
        conditions = Conditions(fingerprint, similarity=self.similarity, lse_drift=self.lse_drift, **self.conditions)
        cosine, drift = ({place: mean[part] for place, mean in means.items()} for part in (0, 1))
        return Calibration(conditions, cosine, drift)

    def under(self, **conditions: Any) -> None:
        """Notes what the runs have in common; raises `AccelError` where they have not."""
        for name, value in conditions.items():
            if self.conditions.setdefault(name, value) != value:
                raise AccelError(f"flashblock: all calibration runs take one {name}, not {value} too")


def place_of(moment: Moment, layer: int) -> str:
    """What a calibration calls a layer's attention at a step."""
    return f"{moment.denoiser}/{moment.step}/{layer}"
