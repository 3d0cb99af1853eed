"""The finished runs of a benchmark, kept one by one: one that is killed loses nothing and measures none twice.

Several processes may add to one folder at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from accel.errors import AccelError
from accel.measure.trial import Setting

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Not on this system, where one process alone may work on a folder.
    fcntl = None

CELLS_FILE, HEADER_FILE = "cells.jsonl", "bench.json"
# Of the lock that a process holds on the folder while it measures, and of files that are not whole yet; they are there
# before anything else is.
_LOCKS = ".accel."
_REFERENCES, _CLIPS, _HEAT = "references", "clips", "heat"
SCHEMA = 1
KIND = "accel bench"


@dataclass(frozen=True)
class Place:
    """Which run a cell is: a prompt with its seed, which time, and how many results in one call."""

    prompt: str
    seed: int
    repeat: int = 0
    batch: int = 1


@dataclass(frozen=True)
class Cell:
    """A finished run; of one that failed, `error` says why and `figures` are empty."""

    setting: str
    place: Place
    figures: dict[str, Any]
    error: str | None = None


class Store:
    """A folder of cells of one model, machine and state of the code, which `identity` tells.

    `bench.json` holds the identity and what was asked for last, `cells.jsonl` a line for each cell, `references` the
    frames of the plain runs that others are compared with (float32), `clips` those to be looked at (8 bits), `heat` the
    heat maps of settings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cells: dict[tuple[str, Place], Cell] = {}

    @classmethod
    def open(cls, folder: Path, identity: dict[str, Any]) -> Store:
        """The store of a folder, made if there is none.

        Raises:
            AccelError: as :meth:`check`.
        """
        cls.check(folder, identity)
        store = cls(folder)
        store.refresh()
        return store

    @staticmethod
    def check(folder: Path, identity: dict[str, Any]) -> None:
        """Looks at a folder and changes nothing.

        Raises:
            AccelError: the folder holds cells of something else, or files that are none of a benchmark's.
        """
        header = folder / HEADER_FILE
        if header.exists():
            known = read_header(folder)["identity"]
            differing = [name for name in {**known, **identity} if known.get(name) != identity.get(name)]
            if differing:
                name = differing[0]
                there, here = _short(known.get(name)), _short(identity.get(name))
                raise AccelError(
                    f"{folder} holds results with {name} {there}, this is {here}: choose another folder with --output, "
                    "or add --fresh to measure all again"
                )
        elif folder.is_dir() and any(not one.name.startswith(_LOCKS) for one in folder.iterdir()):
            raise AccelError(f"{folder} is not empty and holds no {HEADER_FILE}; choose another folder with --output")

    @staticmethod
    def clear(folder: Path) -> None:
        """Takes away what a benchmark has written there, and nothing else."""
        (folder / CELLS_FILE).unlink(missing_ok=True)
        for name in (_REFERENCES, _CLIPS, _HEAT):
            shutil.rmtree(folder / name, ignore_errors=True)
        for part in folder.glob(f"{_LOCKS}*.part"):
            part.unlink(missing_ok=True)
        # The last, so that a folder of half of them is still known for a benchmark's.
        (folder / HEADER_FILE).unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: Path) -> Store:
        """The cells of a folder as they are; nothing there is changed."""
        read_header(folder)
        store = cls(folder)
        store.refresh()
        return store

    def __len__(self) -> int:
        return len(self._cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells.values())

    def find(self, setting: Setting, place: Place) -> Cell | None:
        """The cell of a setting, if it is finished."""
        return self._cells.get((setting.fingerprint, place))

    def of(self, setting: Setting) -> list[Cell]:
        """All cells of a setting, in the order in which they were measured."""
        return [cell for cell in self._cells.values() if cell.setting == setting.fingerprint]

    def write_header(self, identity: dict[str, Any], plan: dict[str, Any]) -> None:
        """Says what the folder holds and what was asked for last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schema": SCHEMA, "kind": KIND, "identity": identity, "plan": plan}, indent=1)
        _replace(self.folder / HEADER_FILE, (text + "\n").encode())

    def add(self, cell: Cell) -> None:
        """Keeps a cell, on the disk when this returns."""
        line = json.dumps(asdict(cell), ensure_ascii=False) + "\n"
        with (self.folder / CELLS_FILE).open("ab+") as lines, _alone_with(lines):
            _cut_half_a_line(lines)
            lines.write(line.encode())
            lines.flush()
            os.fsync(lines.fileno())
        self._cells[cell.setting, cell.place] = cell

    def refresh(self) -> None:
        """Reads the cells that are there now, those that another process has added too."""
        path = self.folder / CELLS_FILE
        if not path.exists():
            return
        # The last may be half a line, of a run that was killed or is being added; the next one added cuts it off.
        whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        for number, line in enumerate(whole, start=1):
            try:
                data = json.loads(line)
                cell = Cell(data["setting"], Place(**data["place"]), data["figures"], data["error"])
            except (ValueError, KeyError, TypeError) as error:
                raise AccelError(f"{path}, line {number}, is no cell of a benchmark ({error}); take it out") from error
            self._cells[cell.setting, cell.place] = cell

    def drop(self, cells: Iterable[Cell]) -> None:
        """Forgets cells, which can be measured again then."""
        for cell in cells:
            del self._cells[cell.setting, cell.place]
        lines = [json.dumps(asdict(cell), ensure_ascii=False) + "\n" for cell in self]
        _replace(self.folder / CELLS_FILE, "".join(lines).encode())

    def keep_reference(self, setting: Setting, place: Place, frames: np.ndarray) -> None:
        """Keeps frames (T, H, W, 3), float32, which others are compared with."""
        _replace_array(self._reference(setting, place), frames.astype(np.float32, copy=False))

    def reference(self, setting: Setting, place: Place) -> np.ndarray | None:
        """The frames that :meth:`keep_reference` kept."""
        path = self._reference(setting, place)
        return np.load(path) if path.exists() else None

    def keep_clip(self, setting: Setting, place: Place, pixels: np.ndarray) -> None:
        """Keeps frames (T, H, W, 3), uint8, to be looked at."""
        path = self._clip(setting, place)
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.stem}.part.npz")
        np.savez_compressed(part, pixels=pixels)
        os.replace(part, path)

    def clip(self, setting: Setting, place: Place) -> np.ndarray | None:
        """The frames that :meth:`keep_clip` kept."""
        path = self._clip(setting, place)
        if not path.exists():
            return None
        with np.load(path) as data:
            return data["pixels"]

    def keep_heat(self, setting: Setting, data: dict[str, Any]) -> None:
        """Keeps the heat map of a setting."""
        path = self._heat(setting)
        path.parent.mkdir(exist_ok=True)
        _replace(path, (json.dumps(data) + "\n").encode())

    def heat(self, setting: Setting) -> dict[str, Any] | None:
        """The heat map that :meth:`keep_heat` kept."""
        path = self._heat(setting)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _heat(self, setting: Setting) -> Path:
        return self.folder / _HEAT / f"{setting.fingerprint}.json"

    def _reference(self, setting: Setting, place: Place) -> Path:
        return self.folder / _REFERENCES / f"{setting.fingerprint}_{_digest(place)}.npy"

    def _clip(self, setting: Setting, place: Place) -> Path:
        return self.folder / _CLIPS / f"{setting.fingerprint}_{_digest(place)}.npz"


def read_header(folder: Path) -> dict[str, Any]:
    """What `bench.json` of a folder says: "identity" and "plan".

    Raises:
        AccelError: there is none, or one of another schema.
    """
    path = folder / HEADER_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AccelError(f"{folder} holds no {HEADER_FILE}: give a folder that accel bench has written") from error
    except (OSError, ValueError) as error:
        raise AccelError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or data.get("kind") != KIND or not {"identity", "plan"} <= data.keys():
        raise AccelError(f"{path} is not of a benchmark: give a folder that accel bench has written")
    if data.get("schema") != SCHEMA:
        raise AccelError(f"{path} has schema {data.get('schema')!r}; this Accel reads schema {SCHEMA}")
    return data


def _digest(place: Place) -> str:
    return hashlib.sha256(json.dumps(asdict(place), sort_keys=True).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"


@contextmanager
def _alone_with(stream: BinaryIO) -> Iterator[None]:
    """Keeps other processes from a file until the block or this process ends.

    Where files cannot be locked one process alone may work on a folder, which whoever claims the work is told.
    """
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
    # Closing the file unlocks it, after the last byte is written.
    yield


def _cut_half_a_line(lines: BinaryIO) -> None:
    """Takes off what a process that was killed while it wrote has left at the end."""
    lines.seek(0)
    data = lines.read()
    lines.truncate(data.rfind(b"\n") + 1)


def _replace(path: Path, data: bytes) -> None:
    # Of this process, since another may write the same file now.
    part = path.with_name(f"{_LOCKS}{path.name}.{os.getpid()}.part")
    with part.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, path)


def _replace_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.stem}.part.npy")
    np.save(part, array)
    os.replace(part, path)
