"""Who makes which output, told between processes by locks that end with the process, however it ends."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from accel.cli.exits import note
from accel.errors import AccelError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Not on this system.
    fcntl = None

LOCK_FILE = ".accel.lock"


class Claims:
    """Locks on the outputs of one folder: one byte for each name, of an empty file that all processes open.

    POSIX record locks hold between the machines that share a folder too. Close it when nothing is left to make; the
    file stays, because another process may be about to lock it. Raises `AccelError`, when it is made, where the file
    cannot be opened for writing, without which nothing can be locked.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise AccelError(
                f"cannot write {folder / LOCK_FILE}, by which processes tell each other what they make: {reason}; "
                "make it a file that you may write, or choose another folder"
            ) from error
        self._works = True

    def close(self) -> None:
        """Gives up all claims."""
        os.close(self._file)

    @contextmanager
    def claim(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Whether this process alone works on the output `name`, until the block ends; `wait` waits until it does."""
        # Of 2^56 places, so that two names share one practically never; if they did, one would wait for the other.
        place = int.from_bytes(hashlib.sha256(name.casefold().encode()).digest()[:7])
        held = self._lock(place, wait=wait)
        try:
            yield held
        finally:
            if held and self._works and fcntl is not None:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def _lock(self, place: int, *, wait: bool) -> bool:
        if fcntl is not None and self._works:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
                return True
            except (BlockingIOError, PermissionError):
                return False
            except OSError:
                pass
        if self._works:
            self._works = False
            note(f"{self._folder} is where files cannot be locked: start no second job on it while this one runs")
        return True
