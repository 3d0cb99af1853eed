"""What the folder says of a line: done, to be made, or something else in its place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from accel.cli.job.plan import Item
from accel.errors import AccelError
from accel.reporting import side_file
from accel.reporting.files import text_writer, write_together

_LONGEST_SHOWN = 60


class Standing(Enum):
    """How a line stands."""

    MISSING = auto()
    DONE = auto()
    # A file is there that was not made as the line asks, as far as can be told.
    OTHER = auto()


@dataclass(frozen=True)
class Found:
    """How a line stands, and why it is so if something is in its place; of a done one, what it was made with."""

    standing: Standing
    why: str = ""
    weights: str | None = None
    dtype: str | None = None


def look(item: Item) -> Found:
    """Reads a line's side file. The side file is put in its place before the output, so that both mean all."""
    there = os.path.lexists(item.media)
    if not os.path.lexists(item.side):
        if there:
            return Found(
                Standing.OTHER, f"{item.media.name} is there without the {item.side.name} that says what it is"
            )
        return Found(Standing.MISSING)
    try:
        data = side_file.read(item.side)
    except AccelError as error:
        return Found(Standing.OTHER, str(error))
    job = data.get("job")
    asked = job.get("asked") if isinstance(job, dict) else None
    if not isinstance(asked, dict):
        return Found(Standing.OTHER, f"{item.side.name} was not written by --prompts")
    # As the file would give it back.
    wanted = json.loads(json.dumps(item.asked))
    changed = next((name for name in {**asked, **wanted} if asked.get(name) != wanted.get(name)), None)
    if changed is not None:
        return Found(Standing.OTHER, f"{item.media.name} is there, {_difference(changed, asked, wanted)}")
    if not there or not item.media.is_file() or item.media.stat().st_size == 0:
        return Found(Standing.MISSING)
    return Found(Standing.DONE, weights=data.get("weights_hash"), dtype=data["model"].get("dtype"))


def of_model(found: Found, item: Item, *, weights: str | None, dtype: str | None = None) -> Found:
    """The same, where a line that is done with other weights or in another number format is not done."""
    if found.standing is not Standing.DONE:
        return found
    for what, there, here in (("weights with the hash", found.weights, weights), ("dtype", found.dtype, dtype)):
        if here is not None and there != here:
            return Found(Standing.OTHER, f"{item.media.name} is there, made with {what} {there}; now it is {here}")
    return found


def last_error(item: Item) -> str | None:
    """Why the line failed when it was last tried; None when it did not."""
    try:
        return item.error.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return None


def keep_error(item: Item, line: str, details: str) -> None:
    """Writes down why a line failed, for the next start and for whoever looks into it."""
    write_together({item.error: text_writer(f"{line}\n\n{details}")}, overwrite=True)


def _difference(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    if name == "dtype":
        # Nobody need have asked for it: the kind of device decides then.
        was, now = (asked.get(name) or "the model's own" for asked in (there, here))
        return f"made with dtype {was}; now it is {now} (--dtype says which)"
    return f"made with {name} {_shown(there.get(name))}; the line asks for {_shown(here.get(name))}"


def _shown(value: Any) -> str:
    if value is None:
        return "left out"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"
