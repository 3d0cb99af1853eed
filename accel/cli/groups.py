"""The options that several commands have, each declared here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from accel.cli import methods
from accel.cli.job.prompts import read, where
from accel.cli.methods import MethodOptions
from accel.cli.options import HOW, WHAT, WHERE, WITH, number, option, whole
from accel.cli.request import Request, image_file, lora
from accel.errors import AccelError

_USUAL = "the pipeline's own if left out"


class Dtype(StrEnum):
    """Number formats of the weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Offload(StrEnum):
    """Ways to keep weights in the main memory while they are not needed."""

    MODEL = "model"
    GROUP = "group"


Seed = Annotated[int | None, option(WHAT, "Start of the noise; 0 if left out.", **whole(0))]
Set = Annotated[
    list[str] | None,
    option(
        WITH,
        "A setting, as in cache.interval=3; `accel list` has them all. May be repeated.",
        "--set",
        metavar="A.B=C",
    ),
]
Compile = Annotated[bool, option(WITH, "Compile the transformer's blocks, also of plain runs.", "--compile")]
Overwrite = Annotated[bool, option(WHERE, "Replace files that exist.", "--overwrite")]
Fps = Annotated[float | None, option(WHERE, "Frames a second of a video.", **number(1, 240))]


@dataclass(frozen=True)
class Prompts:
    """The prompts of a command that makes several runs with the same settings."""

    prompt: Annotated[list[str] | None, option(WHAT, "What to show; may be repeated.", metavar="TEXT")] = None
    prompts: Annotated[
        Path | None, option(WHAT, "Instead of --prompt: a text file with a prompt on each line.", metavar="FILE")
    ] = None

    def texts(self) -> list[str]:
        """Those of `--prompt`, or the lines of the file of `--prompts`; none where neither is given.

        Raises:
            AccelError: both are given, or a line of the file has settings of its own.
        """
        if self.prompts is None:
            return list(self.prompt or ())
        if self.prompt:
            raise AccelError("--prompt and --prompts both say what to show; give one of the two")
        file = self.prompts.expanduser()
        lines = read(file)
        odd = next((line for line in lines if line.settings), None)
        if odd is not None:
            raise AccelError(
                f'{where(file, odd.number)}: "{next(iter(odd.settings))}" is a setting of one line, and all runs here '
                "have the same; leave it out"
            )
        return [line.prompt for line in lines]


@dataclass(frozen=True)
class Call:
    """What goes into a pipeline's call, beside the prompt and the seed."""

    negative_prompt: Annotated[str | None, option(WHAT, "What not to show.", metavar="TEXT")] = None
    image: Annotated[str | None, option(WHAT, "Picture to start from.", metavar="FILE")] = None
    num_inference_steps: Annotated[
        int | None,
        option(WHAT, f"Denoising steps; {_USUAL}.", "--num-inference-steps", "--steps", **whole()),
    ] = None
    guidance_scale: Annotated[
        float | None, option(WHAT, f"How closely to follow the prompt; {_USUAL}.", **number())
    ] = None
    height: Annotated[int | None, option(WHAT, f"Height in pixels; {_USUAL}.", **whole())] = None
    width: Annotated[int | None, option(WHAT, f"Width in pixels; {_USUAL}.", **whole())] = None
    num_frames: Annotated[int | None, option(WHAT, f"Frames of a video; {_USUAL}.", **whole())] = None

    def arguments(self) -> dict[str, Any]:
        """Those that were given, by their diffusers names; without the image, which is a file still."""
        return {name: value for name, value in vars(self).items() if value is not None and name != "image"}


@dataclass(frozen=True)
class Methods:
    """Which methods are on."""

    preset: Annotated[
        str | None, option(WITH, "quality, balanced or fast; none is the plain pipeline.", metavar="NAME")
    ] = None
    config: Annotated[Path | None, option(WITH, "JSON or YAML file of methods.", metavar="FILE")] = None
    cache: Annotated[
        list[str] | None, option(WITH, "delta, tdc, flashblock or none; may be repeated.", metavar="NAME")
    ] = None
    attention: Annotated[str | None, option(WITH, "pisa, adaspa or dense.", metavar="NAME")] = None
    quantize: Annotated[str | None, option(WITH, "mixed, int8, nvfp4 or nvfp4-weight.", metavar="NAME")] = None
    set_: Set = None

    def read(self, otherwise: str | None = None) -> MethodOptions:
        """The same, its settings read; `otherwise` is the preset where nothing at all is given."""
        nothing = all(value is None for value in vars(self).values())
        return MethodOptions(
            otherwise if nothing else self.preset,
            self.config,
            self.attention,
            tuple(self.cache or ()),
            self.quantize,
            methods.settings(self.set_ or ()),
        )


@dataclass(frozen=True)
class Model:
    """The model, what is added to it, and where and how it is held."""

    model: Annotated[
        str | None,
        option(HOW, "demo (the built-in model, the default), a folder, or a hub id.", "--model", "-m", metavar="MODEL"),
    ] = None
    size: Annotated[str | None, option(HOW, "Of the demo: standard (65 frames) or quick (9).", metavar="NAME")] = None
    revision: Annotated[str | None, option(HOW, "Of a model of the hub: a branch, tag or commit.", metavar="NAME")] = (
        None
    )
    variant: Annotated[str | None, option(HOW, "Which of several files of weights, such as fp16.", metavar="NAME")] = (
        None
    )
    lora: Annotated[
        list[str] | None,
        option(HOW, "File, folder or hub id, with =0.8 behind it for that scale; may be repeated.", metavar="PATH"),
    ] = None
    dtype: Annotated[Dtype | None, option(HOW, "float32, bfloat16 or float16.", metavar="NAME")] = None
    device: Annotated[str | None, option(HOW, "Such as cuda or cpu; the GPU if there is one.", metavar="NAME")] = None
    cpu_offload: Annotated[
        Offload | None,
        option(HOW, "Keep weights that are not in use in main memory: model or group.", metavar="KIND"),
    ] = None
    vae_tiling: Annotated[bool, option(HOW, "Decode in tiles, which takes less memory.", "--vae-tiling")] = False

    @property
    def name(self) -> str:
        """The model that is meant."""
        return self.model or "demo"

    def request(self, prompt: str, seed: int, call: Call, **more: Any) -> Request:
        """All of it with a prompt as one request. Raises `AccelError` for what cannot be."""
        return Request(
            prompt=prompt,
            seed=seed,
            model=self.name,
            size=self.size,
            revision=self.revision,
            variant=self.variant,
            call=call.arguments(),
            image=image_file(call.image) if call.image is not None else None,
            loras=tuple(lora(text) for text in self.lora or ()),
            dtype=self.dtype and self.dtype.value,
            device=self.device,
            cpu_offload=self.cpu_offload and self.cpu_offload.value,
            vae_tiling=self.vae_tiling,
            **more,
        )
