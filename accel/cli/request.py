"""What one `accel generate` is asked to do, from options or from a side file."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel.errors import AccelError
from accel.pipelines import demo
from accel.reporting import side_file

LORA_FILE = ".safetensors"
EXAMPLE = '"a red circle moving left on a black background"'
_LARGEST = sys.maxsize
_RANGES: dict[str, tuple[float, float]] = {
    "num_inference_steps": (1, _LARGEST),
    "height": (1, _LARGEST),
    "width": (1, _LARGEST),
    "num_frames": (1, _LARGEST),
    "guidance_scale": (0, 1000),
    "seed": (0, 2**63 - 1),
    "fps": (1, 240),
}


def option_of(name: str) -> str:
    """The option for an argument of a pipeline's call."""
    return "--" + {"num_inference_steps": "steps"}.get(name, name).strip("_").replace("_", "-")


@dataclass(frozen=True)
class InputFile:
    """A file that goes into the result; `sha256` is None for a name of the hub."""

    name: str
    sha256: str | None

    def recorded(self) -> dict[str, Any]:
        """As it stands in the side file."""
        return {"name": self.name, "sha256": self.sha256}


@dataclass(frozen=True)
class Lora(InputFile):
    """A LoRA, and how much of it is added."""

    scale: float = 1.0

    def recorded(self) -> dict[str, Any]:
        """As it stands in the side file."""
        return {**super().recorded(), "scale": self.scale}

    def as_option(self) -> str:
        """As `--lora` takes it."""
        return self._scaled(self.name)

    def identity(self) -> str:
        """What decides on the result."""
        return self._scaled(self.sha256 or self.name)

    def _scaled(self, text: str) -> str:
        return text if self.scale == 1 else f"{text}={self.scale:g}"


@dataclass(frozen=True)
class Request:
    """Everything but the methods and the destination.

    `call` holds the arguments of the pipeline's call that were given, by their diffusers names, without the prompt.
    `recorded` is the side file of a replay.
    """

    prompt: str
    seed: int
    model: str = "demo"
    size: str | None = None
    revision: str | None = None
    variant: str | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    image: InputFile | None = None
    fps: float | None = None
    dtype: str | None = None
    device: str | None = None
    cpu_offload: str | None = None
    compile: bool = False
    vae_tiling: bool = False
    loras: tuple[Lora, ...] = ()
    compare_dense: bool = False
    recorded: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise AccelError(f"the prompt is empty; try --prompt {EXAMPLE}")
        for name, text in (("prompt", self.prompt), ("negative_prompt", self.call.get("negative_prompt") or "")):
            _check_text(option_of(name), text)
        if self.model == "demo":
            demo.check_size(self.size or "standard")
        elif self.size is not None:
            raise AccelError(f"--size belongs to the demo, and {self.model!r} has one size only; leave it out")
        if self.model == "demo" and self.variant is not None:
            raise AccelError(
                "the demo has one file of weights; leave --variant out, or give another model with --model"
            )
        if self.revision is not None and (self.model == "demo" or Path(self.model).expanduser().is_dir()):
            raise AccelError(f"--revision is that of a model of the hub, and {self.model} is none; leave it out")
        numbers = {**self.call, "seed": self.seed, "fps": self.fps}
        for name, (least, most) in _RANGES.items():
            value = numbers.get(name)
            if value is None or least <= value <= most:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise AccelError(f"{option_of(name)} {value} is not a finite number")
            nearest = least if value < least else most
            raise AccelError(f"{option_of(name)} {value} is not possible; the nearest that works is {nearest}")

    @property
    def demo_size(self) -> str | None:
        """The size of the demo; None for another model."""
        return (self.size or "standard") if self.model == "demo" else None

    def options(self) -> dict[str, Any]:
        """The options beside the call, as they stand in the side file."""
        return {
            "revision": self.revision,
            "variant": self.variant,
            "dtype": self.dtype,
            "device": self.device,
            "fps": self.fps,
            "cpu_offload": self.cpu_offload,
            "compile": self.compile,
            "vae_tiling": self.vae_tiling,
            "loras": [lora.recorded() for lora in self.loras],
            "image": self.image.recorded() if self.image else None,
        }


def _check_text(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Bytes that are no text arrive as halves of surrogate pairs, which no file can hold.
        raise AccelError(f"{option} is not text in UTF-8: write its character {error.start + 1} anew") from error


def image_file(path: str) -> InputFile:
    """A picture to start from; refuses what is none."""
    from PIL import Image, UnidentifiedImageError

    file = Path(path).expanduser()
    try:
        with Image.open(file) as image:
            image.load()
    except UnidentifiedImageError as error:
        raise AccelError(f"{file} is not an image that can be read; give a png, jpg or webp file") from error
    except (OSError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AccelError(f"cannot read the image {file}: {reason.lower()}") from error
    return InputFile(str(file.absolute()), side_file.file_sha256(file))


def lora(text: str) -> Lora:
    """A LoRA: a safetensors file, a folder with one, or a hub id; with `=SCALE` behind it, so much of it."""
    name, scale = _name_and_scale(text)
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(path.glob(f"*{LORA_FILE}"))
        if len(found) != 1:
            what = "no" if not found else f"{len(found)}"
            raise AccelError(f"{path} has {what} {LORA_FILE} files; give the file of the LoRA itself")
        path = found[0]
    if path.is_file():
        if path.suffix != LORA_FILE:
            raise AccelError(f"{path} is not a {LORA_FILE} file; other forms can run code when they are read")
        return Lora(str(path.absolute()), side_file.file_sha256(path), scale)
    if path.suffix or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise AccelError(
            f"there is no LoRA {name}; give a {LORA_FILE} file, a folder with one, or a hub id such as org/name"
        )
    return Lora(name, None, scale)


def _name_and_scale(text: str) -> tuple[str, float]:
    name, mark, number = text.rpartition("=")
    if not mark or Path(text).expanduser().exists():
        return text, 1.0
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not name or not math.isfinite(scale):
        raise AccelError(f"--lora {text}: {number!r} is not a scale; write it as in {name or 'FILE'}=0.8")
    return name, scale


def from_side_file(path: Path) -> Request:
    """The request that made a result; refuses when a file that it used is gone or has changed."""
    data = side_file.read(path)
    options, model = data["options"], data["model"]
    try:
        return Request(
            prompt=data["prompt"],
            seed=data["seed"],
            model=model["name"],
            size=model["size"],
            call=data["call"],
            image=_same(options["image"]),
            loras=tuple(
                Lora(file.name, file.sha256, float(entry.get("scale", 1)))
                for entry in options["loras"]
                if (file := _same(entry)) is not None
            ),
            revision=options.get("revision"),
            variant=options.get("variant"),
            recorded=data,
            **{name: options[name] for name in ("fps", "dtype", "device", "cpu_offload", "compile", "vae_tiling")},
        )
    except KeyError as error:
        raise AccelError(f"{path} is damaged: {error} is missing") from error
    except (TypeError, AttributeError) as error:
        raise AccelError(f"{path} is damaged: a value has the wrong type ({error})") from error


def _same(entry: dict[str, Any] | None) -> InputFile | None:
    if entry is None:
        return None
    file = InputFile(entry["name"], entry["sha256"])
    if file.sha256 is None:
        return file
    try:
        found = side_file.file_sha256(Path(file.name))
    except OSError as error:
        raise AccelError(f"{file.name}, which the result was made with, cannot be read: {error.strerror}") from error
    if found != file.sha256:
        raise AccelError(
            f"{file.name} has changed since the result was made: its sha256 was {file.sha256[:16]}, it is {found[:16]}"
        )
    return file
