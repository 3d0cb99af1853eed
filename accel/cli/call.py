"""From a request to the arguments of a pipeline's call; refuses what the pipeline does not take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from accel.cli.exits import RunFailed
from accel.cli.request import Request, option_of
from accel.errors import AccelError
from accel.pipelines import demo
from accel.pipelines.sizes import frame_rate, size_rule
from accel.reporting.side_file import plain_data
from accel.reporting.sound import Sound

# Used where neither the user nor the model says; chosen by us.
_FPS = 16
# What the calls of pipelines that are told the rate name it.
_RATES = ("frame_rate", "fps")
# Arguments that the side file holds elsewhere, or that are objects of this process.
_NOT_RECORDED = ("prompt", "class_labels", "image", "generator", "output_type", "return_dict")


def makes_video(pipe: Any) -> bool:
    """Whether the pipeline gives frames, not one image."""
    return "num_frames" in parameters_of(pipe)


def check_call(pipe: Any, request: Request, *, whole: bool = True) -> None:
    """Refuses what the pipeline does not take, what would do nothing or be rounded, and what it needs and has not got.

    `pipe` may be a pipeline's class, before it is loaded; what sizes it takes is known of a pipeline only. A request
    that is not `whole` may lack what the pipeline needs, because others add it.
    """
    parameters, name = parameters_of(pipe), _name(pipe)
    for argument in request.call:
        if argument not in parameters:
            raise AccelError(f"{name} takes no {option_of(argument)}; leave it out")
    if not isinstance(pipe, type):
        _check_sizes(pipe, request.call)
    _check_negative(name, request.call, parameters)
    if request.fps is not None and not makes_video(pipe):
        raise AccelError(f"{name} makes an image, which has no --fps; leave it out")
    if not parameters.keys() & {"prompt", "class_labels"}:
        raise AccelError(f"{name} takes no prompt; use it from Python, with accel.enable")
    if request.image is not None and "image" not in parameters:
        raise AccelError(f"{name} takes no --image; leave it out, or use an image-to-image model")
    given = {*request.call, "prompt", "class_labels", "image" if request.image is not None else ""}
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in given]
    if whole and missing:
        needed = ", ".join("--image" if n == "image" else n for n in missing)
        raise AccelError(f"{name} needs {needed}, which is not given; what has no option can be given from Python only")


def call_arguments(pipe: Any, request: Request) -> dict[str, Any]:
    """All arguments for `pipe(**arguments)`; a fresh generator, frames as numpy arrays.

    Raises `AccelError` as `check_call` does, and for a prompt that names nothing that the pipeline draws.
    """
    check_call(pipe, request)
    arguments = {**request.call, **prompt_argument(pipe, request)}
    if request.image is not None:
        with Image.open(request.image.name) as image:
            arguments["image"] = image.convert("RGB")
    arguments["generator"] = torch.Generator().manual_seed(request.seed)
    arguments["output_type"] = "np"
    told = _rate_argument(pipe)
    # What a side file has recorded of the call is what the model was told then.
    if told is not None and request.fps is not None:
        arguments.setdefault(told, _whole(request.fps))
    return arguments


def prompt_argument(pipe: Any, request: Request) -> dict[str, Any]:
    """The prompt as the pipeline takes it: a text, or a class."""
    if "prompt" in parameters_of(pipe):
        return {"prompt": request.prompt}
    if request.prompt.strip().isdecimal():
        return {"class_labels": [int(request.prompt)]}
    try:
        return {"class_labels": pipe.get_label_ids([request.prompt])}
    except ValueError as error:
        raise AccelError(
            f"{_name(pipe)} draws classes, and {request.prompt!r} is none of them; give a name or a number"
        ) from error


def frames_per_second(pipe: Any, request: Request) -> float | None:
    """Frames a second of the result; None for an image."""
    if not makes_video(pipe):
        return None
    told = _rate_argument(pipe)
    if request.fps is not None:
        rate = request.fps
    elif request.demo_size:
        rate = demo.defaults(request.demo_size)["fps"]
    elif told is not None:
        rate = request.call.get(told, parameters_of(pipe)[told].default)
    else:
        rate = frame_rate(pipe) or _FPS
    return _whole(rate)


def effective_call(pipe: Any, arguments: Mapping[str, Any], frames: np.ndarray) -> dict[str, Any]:
    """What was called, defaults filled in, without the prompt; what JSON cannot hold keeps its default."""
    count, height, width = frames.shape[:3]
    made = {"height": height, "width": width, "num_frames": count}
    parameters = parameters_of(pipe)
    full = {name: p.default for name, p in parameters.items()} | dict(arguments)
    full |= {name: value for name, value in made.items() if name in full and full[name] is None}
    kept = {name: value for name, value in full.items() if name not in _NOT_RECORDED and value is not None}
    return plain_data({name: value for name, value in kept.items() if not name.startswith("callback")})


def frames_of(output: Any) -> np.ndarray:
    """The first result as frames (T, H, W, 3), float32 in 0..1; an image is one frame."""
    results = output.frames if hasattr(output, "frames") else output.images
    frames = np.asarray(results[0], dtype=np.float32)
    if frames.ndim == 3:
        frames = frames[None]
    if frames.shape[-1] == 1:
        frames = frames.repeat(3, axis=-1)
    if not np.isfinite(frames).all():
        raise RunFailed("the result holds values that are not numbers; try --dtype float32, or fewer methods")
    return frames


def sound_of(pipe: Any, output: Any) -> Sound | None:
    """The sound of the first result; None of a pipeline that makes none."""
    found = getattr(output, "audio", None)
    if found is None:
        return None
    samples = torch.as_tensor(found[0]).detach().float().cpu().numpy()
    if not np.isfinite(samples).all():
        raise RunFailed("the sound holds values that are not numbers; try --dtype float32, or fewer methods")
    return Sound(samples, pipe.vocoder.config.output_sampling_rate)


def parameters_of(pipe: Any) -> dict[str, inspect.Parameter]:
    """What the call of a pipeline, or of pipelines of a class, takes by name."""
    return _parameters((pipe if isinstance(pipe, type) else type(pipe)).__call__)


@lru_cache(maxsize=8)
def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(function).parameters.items()
    return {name: p for name, p in found if p.kind in kinds and name != "self"}


def _rate_argument(pipe: Any) -> str | None:
    return next((name for name in _RATES if name in parameters_of(pipe)), None)


def _whole(rate: float) -> float:
    return int(rate) if float(rate).is_integer() else rate


def _name(pipe: Any) -> str:
    return pipe.__name__ if isinstance(pipe, type) else type(pipe).__name__


def _check_sizes(pipe: Any, arguments: Mapping[str, Any]) -> None:
    rule = size_rule(pipe)
    if rule is None:
        return
    for name in ("height", "width"):
        if name in arguments:
            rule.check_side(name, arguments[name])
    if "num_frames" in arguments:
        rule.check_frames(arguments["num_frames"])


def _check_negative(name: str, arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    if "negative_prompt" not in arguments:
        return
    true_scale = parameters.get("true_cfg_scale")
    if true_scale is not None:
        if arguments.get("true_cfg_scale", true_scale.default) <= 1:
            raise AccelError(f"{name} has distilled guidance, which reads no --negative-prompt; leave it out")
        # It is this scale that reads the prompt, whatever the other one is.
        return
    scale = arguments.get("guidance_scale")
    if scale is not None and scale <= 1:
        raise AccelError(
            f"--negative-prompt does nothing at --guidance-scale {scale:g}; use a scale above 1, or leave it out"
        )
