"""What was measured in a step on its way to the host, where the next step is decided by it.

Where several processes have the tokens among them, each has measured its own part only. Then the parts of all are
gathered, once when they are asked for, so that all processes decide by the same numbers.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor

from accel.pipelines.context_parallel import Ranks
from accel.runtime.readback import Readback

K = TypeVar("K")


class Arriving(Generic[K]):
    """Small float32 tensors under keys; all processes add the same keys in the same order."""

    def __init__(self) -> None:
        self._alone: list[tuple[K, Readback]] = []
        self._parts: list[tuple[K, Tensor]] = []
        self._ranks: Ranks | None = None

    def add(self, key: K, values: Tensor, ranks: Ranks | None) -> None:
        """Sends a tensor off; `ranks` are the processes that have the rest, None where there are none."""
        if ranks is None:
            self._alone.append((key, Readback(values)))
        else:
            self._parts.append((key, values.detach()))
        self._ranks = ranks

    def take(self) -> list[tuple[K, list[list[float]]]]:
        """All that was sent since: of each, its numbers as every process found them; they are forgotten here.

        Waits until they have arrived: where no call came in between, until the device is done with the one that sent
        them.
        """
        found = [(key, [back.tolist()]) for key, back in self._alone]
        self._alone.clear()
        if self._parts and self._ranks is not None:
            device = self._parts[0][1].device
            sizes = [values.numel() for _, values in self._parts]
            together = torch.cat([values.flatten().to(device) for _, values in self._parts])
            columns = self._ranks.gathered(together).cpu().split(sizes, 1)
            found += [(key, part.tolist()) for (key, _), part in zip(self._parts, columns, strict=True)]
            self._parts.clear()
        return found

    def clear(self) -> None:
        """Forgets what was sent."""
        self._alone.clear()
        self._parts.clear()


def summed(parts: list[list[float]]) -> list[float]:
    """Sums over the processes, number by number."""
    return [sum(numbers) for numbers in zip(*parts, strict=True)]
