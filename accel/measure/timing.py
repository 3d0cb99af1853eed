"""Timing cases against each other on one machine, and a description of that machine for result files."""

import hashlib
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from accel.measure.confidence import LEAST_BY_SIGNS

_PACKAGES = ("torch", "diffusers", "transformers", "triton")
_ROOT = Path(__file__).resolve().parents[2]
# Bytes that are written before each case that a device's own clock times: far more than a GPU's cache holds.
_LEAD = 1 << 30
# Cycles for which the device waits before that, about 3 ms, in which the host can launch a case's kernels, so that all
# are queued before the device comes to the first. Writing alone takes a fast GPU a quarter of a millisecond.
_WAIT = 6_000_000

Case = Callable[[], object]
# Runs a case and tells its seconds.
Clock = Callable[[Case], float]
# Of the checkout what a figure can hang on.
_CODE = ("accel", "kernels", "pipelines")


@dataclass(frozen=True)
class Timing:
    """The durations of one case in seconds, in the order in which they were measured."""

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds:
            raise ValueError("a timing needs at least one duration")

    @property
    def median(self) -> float:
        """In seconds."""
        return statistics.median(self.seconds)

    @property
    def p20(self) -> float:
        """The 20th percentile in seconds, interpolated between the two nearest durations."""
        return self._percentile(0.2)

    @property
    def p80(self) -> float:
        """The 80th percentile in seconds, interpolated between the two nearest durations."""
        return self._percentile(0.8)

    def _percentile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratio(base: Timing, other: Timing) -> float:
    """How many times as fast as `base` the other is, by their medians: 2 where it takes half the time."""
    return base.median / other.median


def interleaved(
    cases: Mapping[str, Case],
    *,
    warmup: int = 1,
    repeats: int = 3,
    device: torch.device | str | None = None,
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Times several cases in turn, so that a machine that slows down or warms up does so to all of them.

    Every round runs each case once, and begins one case later than the round before, so that none is always
    first.

    Args:
        cases: what to run, by name; what a case returns is dropped once its clock has stopped.
        warmup: rounds that are run and not timed.
        repeats: rounds that are timed.
        device: the device whose work is waited for; the current CUDA device when None, if there is one.
        clock: what tells the seconds of a case; the host's when None, which waits for the device before and after.

    Returns:
        A timing of `repeats` durations for each case, in the order of `cases`.

    Raises:
        ValueError: no cases, a negative warm-up, or no repeats. What a case raises is passed on.
    """
    if not cases or warmup < 0 or repeats < 1:
        raise ValueError(
            f"cannot time {len(cases)} cases in {repeats} rounds after {warmup}: "
            "it takes a case, a round and no fewer than 0 rounds of warm-up"
        )
    clock = clock or host_clock(device)
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            elapsed = clock(cases[name])
            if turn >= warmup:
                seconds[name].append(elapsed)
    return {name: Timing(tuple(durations)) for name, durations in seconds.items()}


def take_turns(
    cases: Mapping[str, Case],
    device: torch.device | str,
    *,
    seconds: float = 4.0,
    most: int = 30,
    rounds: int | None = None,
) -> dict[str, Timing]:
    """Times single operations in turn by the device's own clock: `interleaved`, in as many rounds as there is time for.

    On a GPU these are seconds between two events of the device, each case with the device's caches full of something
    else. The time that its launches take on the host is not in them as long as it is under 3 ms; of a case that takes
    longer to launch, or that waits for the device, what goes beyond that is.

    Args:
        cases: what to run, by name. Each is run three times before, for compilation and for clocks that rise.
        device: where they run.
        seconds: that the rounds should take together; there are 6 at least, of which the sign test can tell noise.
        most: rounds at most.
        rounds: so many, whatever they take.

    Returns:
        A timing for each case, in the order of `cases`. What a case raises is passed on.
    """
    clock = _device_clock(device)
    once = 0.0
    for case in cases.values():
        case()
        once += min(clock(case) for _ in range(2))
    if rounds is None:
        rounds = max(LEAST_BY_SIGNS, min(most, int(seconds / max(once, 1e-6))))
    return interleaved(cases, warmup=0, repeats=rounds, clock=clock)


def host_clock(device: torch.device | str | None) -> Clock:
    """The host's clock, which waits for the device before and after; the current CUDA device when None, if any."""

    def clock(case: Case) -> float:
        _synchronize(device)
        began = time.perf_counter()
        result = case()
        _synchronize(device)
        elapsed = time.perf_counter() - began
        del result
        return elapsed

    return clock


def _device_clock(device: torch.device | str) -> Clock:
    """The device's own, where it has one."""
    if torch.device(device).type != "cuda":
        return host_clock(device)
    lead = torch.empty(_LEAD, dtype=torch.uint8, device=device)

    def clock(case: Case) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        torch.cuda._sleep(_WAIT)
        lead.zero_()
        start.record()
        case()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    return clock


def _synchronize(device: torch.device | str | None) -> None:
    if device is None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    elif torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device | str | None = None) -> dict[str, Any]:
    """What a figure must be read with: the machine, the versions and the state of the code.

    Args:
        device: what is measured; the current CUDA device when None, or the CPU where there is none.

    Returns:
        "device" (its name), "cores" that this process may use, torch's "threads", "python", a version or None
        for each of torch, diffusers, transformers and triton, and, in a git checkout of this project with a
        commit, the "commit" and whether tracked files differ from it ("modified"); both None elsewhere.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    commit = _git("rev-parse", "HEAD")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "commit": commit,
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
    }


def changes() -> str | None:
    """In what Accel's own code differs from its commit, files included that git does not know: the first 16 hex digits
    of a SHA-256. None where it does not, and without a git checkout of this project."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    digest = hashlib.sha256()
    texts = [_git("diff", "--binary", "HEAD", "--", *_CODE) or ""]
    for name in (_git("ls-files", "--others", "--exclude-standard", "-z", "--", *_CODE) or "").split("\0"):
        if (_ROOT / name).is_file():
            texts.append(f"{name} {hashlib.sha256((_ROOT / name).read_bytes()).hexdigest()}")
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()[:16] if any(texts) else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says in this project's own checkout; None where the package was installed without one."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
