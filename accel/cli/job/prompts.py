"""The file of prompts: a line of text is a prompt, a line that begins with { is a JSON object with settings."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from accel.errors import AccelError

_COMMENT, _OBJECT = "#", "{"
_KINDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative_prompt": (str,),
    "seed": (int,),
    "num_inference_steps": (int,),
    "guidance_scale": (int, float),
    "height": (int,),
    "width": (int,),
    "num_frames": (int,),
    "image": (str,),
    "output": (str,),
}
# What the command line calls it.
_ALIASES = {"steps": "num_inference_steps"}
_WORDS = {str: "a text", int: "a whole number", float: "a number"}
_LONGEST_SHOWN = 40


@dataclass(frozen=True)
class Line:
    """One prompt of the file; `settings` are those of the line's own, without the prompt."""

    number: int
    prompt: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def read(file: Path) -> list[Line]:
    """All prompts of a file, in order; `number` counts every line from 1, as editors do.

    Blank lines are skipped, and so are lines that begin with #. Raises `AccelError` for the first line that is not as
    it must be, naming file, line and what works.
    """
    try:
        # A mark of byte order, which some editors put first, is no part of the text; any ending of lines will do.
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AccelError(f"{file} is not a text file in UTF-8; give one with a prompt on each line") from error
    except OSError as error:
        raise AccelError(f"cannot read the prompts {file}: {(error.strerror or str(error)).lower()}") from error
    if "\0" in text:
        raise AccelError(f"{file} is not a text file in UTF-8; give one with a prompt on each line")
    lines = list(_lines(file, text))
    if not lines:
        raise AccelError(f"{file} has no prompts; write one on each line")
    return lines


def where(file: Path, number: int) -> str:
    """How a line is named in messages."""
    return f"{file}, line {number}"


def _lines(file: Path, text: str) -> Iterator[Line]:
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith(_COMMENT):
            continue
        if not line.startswith(_OBJECT):
            yield Line(number, line)
            continue
        try:
            settings = _object(line)
        except AccelError as error:
            raise AccelError(f"{where(file, number)}: {error}") from error
        yield Line(number, settings.pop("prompt"), settings)


def _object(text: str) -> dict[str, Any]:
    """The settings of a JSON line, each of a known name and the right type."""
    try:
        found = json.loads(text, object_pairs_hook=_no_twins, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise AccelError(
            f"this is not valid JSON ({error.msg.lower()} at column {error.colno}); "
            'write it as {"prompt": "a red circle", "seed": 1}, or as plain text that does not begin with {'
        ) from error
    except AccelError:
        raise
    except (ValueError, RecursionError) as error:
        raise AccelError(f"this is not JSON that can be read: {error}") from error
    for name, value in found.items():
        if name not in _KINDS:
            nearest = _ALIASES.get(name) or next(iter(difflib.get_close_matches(name, _KINDS, n=1)), None)
            hint = f'did you mean "{nearest}"?' if nearest else f"there are {', '.join(_KINDS)}"
            raise AccelError(f'there is no setting "{_short(name)}" for a line; {hint}')
        _check(name, value)
    if "prompt" not in found:
        raise AccelError('there is no "prompt"; write {"prompt": "a red circle"}')
    return found


def _check(name: str, value: Any) -> None:
    kinds = _KINDS[name]
    if value is None:
        raise AccelError(f'"{name}" is null; leave it out for the default')
    if not isinstance(value, kinds) or isinstance(value, bool):
        shown = json.dumps(value)
        raise AccelError(f'"{name}" must be {_WORDS[kinds[-1]]}, not {_short(shown)}')
    if not isinstance(value, str):
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise AccelError(f'"{name}" holds half of a surrogate pair, which is no character; write it out') from error
    if not value.strip() and name != "negative_prompt":
        raise AccelError(f'"{name}" is empty' + ("" if name == "prompt" else "; leave it out for the default"))


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise AccelError(f'"{_short(twice)}" is there twice; give it once')
    return dict(pairs)


def _no_number(name: str) -> NoReturn:
    raise AccelError(f"{name} is not a number that JSON knows")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"
