"""Numbers on their way from the device to the host, so that nobody waits for them before they are needed."""

from __future__ import annotations

from typing import Any

import torch


class Readback:
    """A small tensor that is copied to the host while the device goes on."""

    def __init__(self, values: torch.Tensor) -> None:
        self._arrived: Any = None
        self._values = values.detach()
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))

    def tolist(self) -> list[float]:
        """The numbers of a vector; waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()
