"""Files that appear whole or not at all, several of them together or none."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from accel.errors import AccelError

Writer = Callable[[Path], None]

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(?:part|old)(?:\.\w+)?", re.DOTALL)


class WriteError(OSError):
    """Writing failed; nothing of it is left. The message is one line and names the file."""


def check_folder(folder: Path) -> None:
    """Refuses a folder in which no file can be made; a folder that does not exist yet is judged by its parent."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise AccelError(f"cannot write into {folder}: {existing} is not a folder")
    try:
        # Asking the permission bits is not enough: read-only file systems and the superuser escape them.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise AccelError(f"cannot write into {folder}: {_reason(error)}") from error


def check_parent(file: Path) -> None:
    """Refuses a file that is named in a folder which is not there, or in which none can be made."""
    if not file.parent.exists():
        raise AccelError(f"there is no folder {file.parent} for {file.name}; make it first")
    check_folder(file.parent)


def check_free(targets: Iterable[Path], *, overwrite: bool) -> None:
    """Refuses targets that exist, unless they may be overwritten; folders always."""
    for target in targets:
        if target.is_dir():
            raise AccelError(f"{target} is a folder; add a file name, or a slash to get a numbered file in it")
        if not overwrite and os.path.lexists(target):
            raise AccelError(f"{target} exists; choose another name, or add --overwrite to replace it")


def write_together(files: Mapping[Path, Writer], *, overwrite: bool = False) -> None:
    """Writes all files or none.

    Every writer gets the path of a temporary file in its target's folder. The files are moved to their targets, in the
    order given, when all of them are complete and on the disk: where the last one is, all are, even if the process is
    killed. Whatever fails before that, an interruption included, leaves the targets as they were. Missing folders are
    made, and taken away again on failure.

    Raises:
        AccelError: a target exists and `overwrite` is not given.
        WriteError: the system refused, for example because the disk is full.
    """
    check_free(files, overwrite=overwrite)
    made = _missing_folders(files)
    temporary = {target: _beside(target, "part") for target in files}
    current = next(iter(files), Path())
    done = False
    try:
        for folder in made:
            folder.mkdir(exist_ok=True)
        for target, write in files.items():
            current = target
            write(temporary[target])
            _sync(temporary[target])
        _move(temporary, overwrite=overwrite)
        done = True
    except OSError as error:
        raise WriteError(f"cannot write {current}: {_reason(error)}") from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        if not done:
            for folder in reversed(made):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def text_writer(text: str) -> Writer:
    """A writer of a text, in UTF-8."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def bytes_writer(data: bytes) -> Writer:
    """A writer of bytes."""

    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def leftovers(folder: Path) -> dict[str, list[Path]]:
    """Temporary files of `write_together` that processes which were killed have left, by their target's stem.

    Those of a process that is writing now are among them.
    """
    found: dict[str, list[Path]] = {}
    if folder.is_dir():
        for name in os.listdir(folder):
            match = _TEMPORARY.fullmatch(name)
            if match:
                found.setdefault(match[1], []).append(folder / name)
    return found


def _move(temporary: Mapping[Path, Path], *, overwrite: bool) -> None:
    """Moves every temporary file to its target, in order; when one cannot be moved, all targets are as they were."""
    aside = {target: _beside(target, "old") for target in temporary if overwrite and target.exists()}
    placed: list[Path] = []
    try:
        # All old ones go before the first new one comes, the last first: whoever is killed in between must not leave
        # files beside each other that do not belong together.
        for target in reversed(aside):
            os.replace(target, aside[target])
        for target, path in temporary.items():
            # Somebody else may have made the file during the run.
            check_free([target], overwrite=overwrite)
            placed.append(target)
            os.replace(path, target)
        for folder in {target.parent for target in temporary}:
            _sync(folder)
    except BaseException:
        for target in placed:
            # A target is ours to take back only when its temporary file has gone there.
            if not temporary[target].exists():
                target.unlink(missing_ok=True)
        for target, old in aside.items():
            if old.exists():
                os.replace(old, target)
        raise
    for old in aside.values():
        old.unlink(missing_ok=True)


def _missing_folders(targets: Iterable[Path]) -> list[Path]:
    """Folders that must be made, the outer ones first."""
    missing: set[Path] = set()
    for target in targets:
        folder = target.parent
        while not folder.exists():
            missing.add(folder)
            folder = folder.parent
    return sorted(missing, key=lambda folder: len(folder.parts))


def _beside(target: Path, kind: str) -> Path:
    # The suffix stays last, since some writers choose the format by it; the dot hides it from listings.
    return target.with_name(f".{target.stem}.{secrets.token_hex(4)}.{kind}{target.suffix}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return error.strerror.lower() if error.strerror else " ".join(str(error).split())
