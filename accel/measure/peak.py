"""The most memory that was in use while something ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# What the kernel takes to mean: forget the highest resident size so far (proc_pid_clear_refs(5)).
_FORGET_PEAK = "5"


@dataclass
class Peak:
    """`bytes`, once the block is left; None where the system does not tell."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """The most bytes in use within the block.

    On a GPU those that torch had given out on that device; on a CPU the resident size of this process, with everything
    that was there before, as far as Linux lets it be read.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    readable = device.type == "cpu" and _forget()
    yield peak
    if readable:
        peak.bytes = _resident_peak()


def _forget() -> bool:
    try:
        _CLEAR.write_text(_FORGET_PEAK)
    except OSError:
        return False
    return True


def _resident_peak() -> int | None:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    return None
