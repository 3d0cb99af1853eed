"""What a device can do at best: products a second and bytes a second, measured once and kept."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from accel.errors import AccelWarning
from accel.measure.timing import machine

# On a CPU, and elsewhere: large enough that starting a kernel does not count, done in a second; chosen by us.
_SIDE = {True: 1024, False: 8192}
_COPIED = {True: 1 << 28, False: 1 << 30}
_REPEATS = 15


@dataclass(frozen=True)
class Ceilings:
    """`flops` are floating-point operations a second of a square matrix product, `bandwidth` bytes a second of a copy
    (read and written bytes together); each the best of several."""

    flops: float
    bandwidth: float

    def ideal_seconds(self, flops: float, moved: float) -> float:
        """The least time for so many operations and moved bytes: the longer of the two."""
        return max(flops / self.flops, moved / self.bandwidth)


def ceilings(device: torch.device, dtype: torch.dtype, *, again: bool = False, folder: Path | None = None) -> Ceilings:
    """The ceilings of a device in a number format; measured the first time, and read from a file then.

    Args:
        device, dtype: what is measured, in `dtype`'s own products.
        again: measure, whatever the file says.
        folder: where the file is; `accel` in the user's cache folder when None. Where none can be written, a warning
            says so.
    """
    place = (folder or _cache_folder()) / "ceilings.json"
    known = _read(place)
    name = _name(device, dtype)
    if again or name not in known:
        known[name] = asdict(Ceilings(_flops(device, dtype), _bandwidth(device, dtype)))
        try:
            _keep(place, known)
        except OSError as error:
            text = f"what the device can do is not kept for the next time: cannot write {place}: {error.strerror}"
            warnings.warn(text, AccelWarning, stacklevel=2)
    return Ceilings(**known[name])


def _keep(place: Path, known: dict[str, dict[str, float]]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    part.write_text(json.dumps(known, indent=1))
    os.replace(part, place)


def _name(device: torch.device, dtype: torch.dtype) -> str:
    told = machine(device)
    return f"{told['device']}, {told['threads']} threads, torch {told['torch']}, {str(dtype).removeprefix('torch.')}"


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "accel"


def _read(place: Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(place.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _flops(device: torch.device, dtype: torch.dtype) -> float:
    side = _SIDE[device.type == "cpu"]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _least_seconds(device, lambda: torch.mm(a, b, out=out))


def _bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    size = _COPIED[device.type == "cpu"]
    source = torch.zeros(size // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _least_seconds(device, lambda: target.copy_(source))


def _least_seconds(device: torch.device, work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS + 1):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
