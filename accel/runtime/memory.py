"""How much memory a device has left."""

from __future__ import annotations

from pathlib import Path

import torch

_ROOT = Path("/")


def free_bytes(device: torch.device, root: Path = _ROOT) -> int | None:
    """Bytes that can still be allocated on a device, or None where it does not tell.

    On a GPU what torch has reserved and not given out counts as free; on a CPU it is Linux's estimate, or what the
    limits of the process's control groups leave, as in a container, where that is less. `root`: where /proc and /sys
    are.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    found = [value for value in (_available(root), *_left_by_groups(root)) if value is not None]
    return min(found, default=None)


def _available(root: Path) -> int | None:
    kilobytes = _table(root / "proc/meminfo").get("MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def _left_by_groups(root: Path) -> list[int | None]:
    """What each limit on the way to the process's control group leaves, in both versions of control groups."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Within a container the path may be the host's, and only the top is there.
        own = top / path.lstrip("/")
        groups = (group for group in (own, *own.parents) if group.is_relative_to(top))
        found += [_left(group, *names) for group in groups]
    return found


def _left(group: Path, limit: str, used: str, cached: str) -> int | None:
    most, now = _number(group / limit), _number(group / used)
    if most is None or now is None:
        return None
    # Files that were read are counted as used, and given up first.
    return max(0, most - now + _table(group / "memory.stat").get(cached, 0))


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdigit() else None  # "max" is no limit.


def _table(file: Path) -> dict[str, int]:
    """Lines of a name and a number, whatever follows."""
    rows = (line.split() for line in _text(file).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
