"""Marks in time that never make a run wait: events on a GPU, the host's clock elsewhere."""

from __future__ import annotations

import time
from typing import Any

import torch


def mark(device: torch.device) -> Any:
    """Now, as the device comes to it; two of them go to `seconds_between`."""
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event
    return time.perf_counter()


def seconds_between(start: Any, end: Any) -> float:
    """Seconds from one mark to another; on a GPU it waits until the device has come to the second."""
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000
