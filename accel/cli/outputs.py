"""Where a result goes: the file that was named, a numbered file of a folder, or a time-stamped one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from accel.errors import AccelError
from accel.reporting.files import check_folder, check_free, check_parent
from accel.reporting.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES

DEFAULT_FOLDER = Path("outputs")
_NUMBERED = re.compile(r"(\d+)\.")


@dataclass(frozen=True)
class Destination:
    """What `--output` asks for, as far as it can be known before the model is."""

    folder: Path
    # The file that the user named; None for one that gets its name here.
    name: str | None
    numbered: bool
    overwrite: bool

    def path(self, *, video: bool, model: str) -> Path:
        """The file for this kind of result; refuses a suffix that cannot hold it."""
        if self.name is None:
            suffix = ".mp4" if video else ".png"
            return _next_number(self.folder, suffix) if self.numbered else _time_stamped(self.folder, model, suffix)
        path = self.folder / self.name
        possible = VIDEO_SUFFIXES if video else IMAGE_SUFFIXES
        if path.suffix.lower() not in possible:
            kind = "a video" if video else "an image"
            raise AccelError(f"{path} cannot hold {kind}: use {_listed(possible)}")
        return path


@dataclass(frozen=True)
class OutputFiles:
    """The files of one result."""

    media: Path

    @property
    def side(self) -> Path:
        """The JSON file beside the result."""
        return self.media.with_suffix(".json")

    @property
    def sheet(self) -> Path:
        """The contact sheet of `--compare-dense`."""
        return self.media.with_name(f"{self.media.stem}.compare.png")


def destination(output: str | None, *, overwrite: bool, compare: bool) -> Destination:
    """Reads `--output` and refuses what cannot work, before anything is loaded."""
    if output is None:
        check_folder(DEFAULT_FOLDER)
        return Destination(DEFAULT_FOLDER, None, numbered=False, overwrite=overwrite)
    if not output.strip():
        raise AccelError("--output is empty: give a file such as video.mp4, or a folder")
    path = Path(output).expanduser()
    if output.endswith("/") or path.is_dir():
        check_folder(path)
        return Destination(path, None, numbered=True, overwrite=overwrite)
    possible = tuple(dict.fromkeys((*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)))
    if not path.suffix:
        raise AccelError(
            f"{path} has no suffix: end it in {_listed(possible)}, or in / for a numbered file in a folder"
        )
    if path.suffix.lower() not in possible:
        raise AccelError(f"{path.name} is of a kind that accel does not write: use {_listed(possible)}")
    check_parent(path)
    files = OutputFiles(path)
    check_free([files.media, files.side, *([files.sheet] if compare else [])], overwrite=overwrite)
    return Destination(path.parent, path.name, numbered=False, overwrite=overwrite)


def folder_for(prompts: Path, output: str | None) -> Path:
    """The folder of `--prompts`; without `--output` it is called as the file, so that the next start finds it."""
    if output is not None and not output.strip():
        raise AccelError("--output is empty: give a folder such as clips/")
    folder = DEFAULT_FOLDER / prompts.stem if output is None else Path(output).expanduser()
    if folder.suffix.lower() in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES) and not folder.is_dir():
        raise AccelError(f"--prompts makes many files, and {folder} names one: give a folder, as in -o {folder.stem}/")
    check_folder(folder)
    return folder


def _next_number(folder: Path, suffix: str) -> Path:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    numbers = [int(match[1]) for name in names if (match := _NUMBERED.match(name))]
    return folder / f"{max(numbers, default=0) + 1:04d}{suffix}"


def _time_stamped(folder: Path, model: str, suffix: str) -> Path:
    word = re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-.") or "model"
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{word}"
    path, count = folder / f"{stem}{suffix}", 1
    while any((folder / f"{path.stem}{end}").exists() for end in (suffix, ".json")):
        count += 1
        path = folder / f"{stem}_{count}{suffix}"
    return path


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
