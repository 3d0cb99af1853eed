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


def option(name: str) -> str:
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
class Request:
    """Everything but the methods and the destination.

    `call` holds the arguments of the pipeline's call that were given, by their diffusers names, without the prompt.
    `recorded` is the side file of a replay.
    """

    prompt: str
    seed: int
    model: str = "demo"
    size: str | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    image: InputFile | None = None
    fps: float | None = None
    dtype: str | None = None
    device: str | None = None
    cpu_offload: str | None = None
    compile: bool = False
    vae_tiling: bool = False
    loras: tuple[InputFile, ...] = ()
    compare_dense: bool = False
    recorded: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise AccelError('the prompt is empty; try --prompt "a red circle moving left on a black background"')
        if self.model == "demo":
            demo.check_size(self.size or "standard")
        elif self.size is not None:
            raise AccelError(f"--size belongs to the demo, and {self.model!r} has one size only; leave it out")
        numbers = {**self.call, "seed": self.seed, "fps": self.fps}
        for name, (least, most) in _RANGES.items():
            value = numbers.get(name)
            if value is None or least <= value <= most:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise AccelError(f"{option(name)} {value} is not a finite number")
            nearest = least if value < least else most
            raise AccelError(f"{option(name)} {value} is not possible; the nearest that works is {nearest}")

    @property
    def demo_size(self) -> str | None:
        """The size of the demo; None for another model."""
        return (self.size or "standard") if self.model == "demo" else None

    def options(self) -> dict[str, Any]:
        """The options beside the call, as they stand in the side file."""
        return {
            "dtype": self.dtype,
            "device": self.device,
            "fps": self.fps,
            "cpu_offload": self.cpu_offload,
            "compile": self.compile,
            "vae_tiling": self.vae_tiling,
            "loras": [lora.recorded() for lora in self.loras],
            "image": self.image.recorded() if self.image else None,
        }


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


def lora(name: str) -> InputFile:
    """A LoRA: a safetensors file, a folder with one, or a hub id."""
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
        return InputFile(str(path.absolute()), side_file.file_sha256(path))
    if path.suffix or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise AccelError(
            f"there is no LoRA {name}; give a {LORA_FILE} file, a folder with one, or a hub id such as org/name"
        )
    return InputFile(name, None)


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
            loras=tuple(file for entry in options["loras"] if (file := _same(entry)) is not None),
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
