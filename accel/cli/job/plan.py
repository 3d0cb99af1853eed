"""From the lines of a file to what is to be made: a request and a file in the folder for each."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accel.cli import call, request
from accel.cli.job.prompts import Line, where
from accel.cli.outputs import OutputFiles
from accel.cli.request import InputFile, Request
from accel.config import AccelConfig
from accel.errors import AccelError
from accel.methods.base import MethodConfig
from accel.reporting import side_file
from accel.reporting.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES

_LONGEST_SLUG = 40
# Names get a random part and a kind while they are written, and systems take 255 bytes.
_MOST_BYTES = 180
_LIKE_A_SUFFIX = re.compile(r"\.[A-Za-z]\w{1,4}")
_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f/\\]")


@dataclass(frozen=True)
class Item:
    """One line: what is asked for, the file that it goes to, and what its side file must say to be taken for it."""

    number: int
    request: Request
    media: Path
    asked: Mapping[str, Any]

    @property
    def side(self) -> Path:
        """The side file, which is there before the output is."""
        return OutputFiles(self.media).side

    @property
    def error(self) -> Path:
        """The file that says why the line failed last time."""
        return self.media.with_name(f"{self.media.stem}.error.txt")


@dataclass(frozen=True)
class Plan:
    """All lines of one file and the folder that they go to."""

    file: Path
    folder: Path
    items: tuple[Item, ...]

    def blame(self, item: Item) -> str:
        """How a line is named in messages."""
        return where(self.file, item.number)


def plan(
    file: Path,
    lines: Sequence[Line],
    folder: Path,
    base: Request,
    pipeline: type,
    config: AccelConfig,
    dtype: str | None,
) -> Plan:
    """Checks every line as far as that can be done without the model.

    `base` holds where a line says nothing else; its seed is that of line 1, and each further line takes the next.
    `dtype` is that in which the model will be loaded, whoever chose it; None where the loader chooses.
    """
    call.check_call(pipeline, base, whole=False)
    alike = _of_all_lines(base, pipeline, config, dtype)
    image_file = functools.cache(request.image_file)
    items: list[Item] = []
    taken: dict[str, Item] = {}
    for line in lines:
        with blaming(file, line.number):
            asked = _request(line, base, lambda name: image_file(str(file.parent / Path(name).expanduser())))
            call.check_call(pipeline, asked)
            video = call.makes_video(pipeline) and asked.call.get("num_frames") != 1
            media = folder / _name(line, video=video)
            item = Item(line.number, asked, media, _identity(asked, media.name, alike))
            # Some systems take A and a for one name, and two ways to write an accent too.
            key = unicodedata.normalize("NFC", media.stem).casefold()
            if key in taken:
                other = taken[key]
                raise AccelError(
                    f"its output would be {media.name}, and line {other.number} has {other.media.name}; "
                    'give one of them another "output"'
                )
        taken[key] = item
        items.append(item)
    return Plan(file, folder, tuple(items))


def check_on(pipe: Any, plan: Plan, base: Request) -> None:
    """Checks every line on the loaded pipeline, which alone knows what sizes it takes."""
    call.check_call(pipe, base, whole=False)
    checked = set()
    for item in plan.items:
        with blaming(plan.file, item.number):
            settings = (*sorted(item.request.call.items()), item.request.image is None)
            if settings not in checked:
                call.check_call(pipe, item.request)
                checked.add(settings)
            call.prompt_argument(pipe, item.request)


@contextmanager
def blaming(file: Path, number: int) -> Iterator[None]:
    """Names the line in what is refused."""
    try:
        yield
    except AccelError as error:
        raise AccelError(f"{where(file, number)}: {error}") from error


def _request(line: Line, base: Request, image_file: Callable[[str], InputFile]) -> Request:
    settings = dict(line.settings)
    settings.pop("output", None)
    image = settings.pop("image", None)
    return replace(
        base,
        prompt=line.prompt,
        seed=settings.pop("seed", base.seed + line.number - 1),
        image=image_file(image) if image is not None else base.image,
        call={**base.call, **settings},
    )


def _identity(asked: Request, name: str, alike: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what is in the output, but for the weights; not where and with how much memory it is made."""
    image = asked.image and asked.image.sha256
    return {"prompt": asked.prompt, "seed": asked.seed, **asked.call, "image": image, "output": name, **alike}


def _of_all_lines(base: Request, pipeline: type, config: AccelConfig, dtype: str | None) -> dict[str, Any]:
    """What decides it for all lines alike."""
    return {
        "fps": base.fps,
        "pipeline": pipeline.__name__,
        "size": base.demo_size,
        "dtype": dtype,
        "vae_tiling": base.vae_tiling,
        "compile": base.compile,
        "loras": [lora.identity() for lora in base.loras],
        "revision": base.revision,
        "variant": base.variant,
        "methods": sorted(method.method for method in config.methods),
        **{f"{m.method}.{name}": value for m in config.methods for name, value in _settings(m).items()},
    }


def _settings(config: MethodConfig) -> dict[str, Any]:
    """A method's settings; of a file, what is in it, which may change while its name stays, or stay under another."""
    found = config.model_dump()
    for name in config.files:
        if found[name] is None:
            continue
        try:
            found[name] = side_file.file_sha256(Path(found[name]))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise AccelError(f"{config.method} cannot read its {name} {found[name]}: {reason}") from error
    return found


def _name(line: Line, *, video: bool) -> str:
    possible, default = (VIDEO_SUFFIXES, ".mp4") if video else (IMAGE_SUFFIXES, ".png")
    given = line.settings.get("output")
    if given is None:
        slug = _slug(line.prompt)
        return f"{line.number:04d}{'-' if slug else ''}{slug}{default}"
    name = given.strip()
    if _NOT_IN_NAMES.search(name) or name.startswith("."):
        raise AccelError(f'"output" {name!r} is not a plain file name; the folder is given by --output')
    if len(name.encode()) > _MOST_BYTES:
        raise AccelError(f'"output" has {len(name.encode())} bytes; the most that works is {_MOST_BYTES}')
    suffix = Path(name).suffix
    if suffix.lower() in possible:
        return name
    if suffix.lower() in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES):
        kind = "a video" if video else "an image"
        raise AccelError(f'"output" {name!r} cannot hold {kind}: use {" or ".join(possible)}, or no suffix')
    if _LIKE_A_SUFFIX.fullmatch(suffix):
        raise AccelError(f'"output" {name!r} is of a kind that accel does not write: use {" or ".join(possible)}')
    return name + default


def _slug(prompt: str) -> str:
    """The beginning of a prompt as part of a file name."""
    words = re.sub(r"\W+", "-", unicodedata.normalize("NFKC", prompt).lower()).strip("-_")
    if len(words) <= _LONGEST_SLUG:
        return words
    cut = words[: _LONGEST_SLUG + 1]
    # At the end of a word, where there is one.
    return (cut.rpartition("-")[0] or cut[:_LONGEST_SLUG]).strip("-_")
