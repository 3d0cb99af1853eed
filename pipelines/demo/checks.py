"""Refusals of the demo's call, before any work: what diffusers would round, reject late or not notice."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

from accel.errors import AccelError

EXAMPLE = '"a red circle moving left on a plain black background"'
OUTPUT_TYPES = ("np", "pt", "pil", "latent")


def check_prompts(call: Mapping[str, Any]) -> None:
    """Refuse a call without text, with text of the wrong type, or with lists of texts that do not match."""
    prompt, negative = call["prompt"], call["negative_prompt"]
    if call["prompt_embeds"] is not None:
        if prompt is not None:
            raise AccelError("prompt and prompt_embeds are both given; give one of the two")
    elif prompt is None:
        raise AccelError(f"no prompt is given; try {EXAMPLE}")
    if negative is not None and call["negative_prompt_embeds"] is not None:
        raise AccelError("negative_prompt and negative_prompt_embeds are both given; give one of the two")

    for name, value in (("prompt", prompt), ("negative_prompt", negative)):
        if value is None or isinstance(value, str):
            continue
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise AccelError(f"{name} must be a text or a list of texts, not {_kind(value)}")
        if not value:
            raise AccelError(f"{name} is an empty list; give at least one text")
    if any(not text.strip() for text in texts(prompt)):
        raise AccelError(f"the prompt is empty; try {EXAMPLE}")
    count = len(texts(prompt))
    if prompt is not None and isinstance(negative, list) and len(negative) != count:
        raise AccelError(f"prompts: {count}, negative prompts: {len(negative)}; give as many, or one text")


def check_numbers(call: Mapping[str, Any], *, multiple: int, frame_factor: int, longest: int) -> None:
    """Refuse sizes and counts that the model cannot make, and name the nearest that it can.

    `multiple`: pixels of height or width that one token covers; `frame_factor`: frames that one latent frame
    covers (after the first frame, which has its own); `longest`: tokens along one axis that the position
    embedding reaches.
    """
    for name in ("height", "width"):
        size = _whole(name, call[name], at_least=multiple)
        nearest = min(max(1, (size + multiple // 2) // multiple), longest) * multiple
        if size % multiple:
            raise AccelError(f"{name}={size} is not a multiple of {multiple}; the nearest that works is {nearest}")
        if size != nearest:
            raise AccelError(f"{name}={size} is more than the model can place; the most that works is {nearest}")

    frames = _whole("num_frames", call["num_frames"])
    nearest = min((frames - 1 + frame_factor // 2) // frame_factor, longest - 1) * frame_factor + 1
    if (frames - 1) % frame_factor:
        rule = "odd" if frame_factor == 2 else f"one more than a multiple of {frame_factor}"
        raise AccelError(f"num_frames={frames} is not {rule}; the nearest that works is {nearest}")
    if frames != nearest:
        raise AccelError(f"num_frames={frames} is more than the model can place; the most that works is {nearest}")

    for name in ("num_inference_steps", "num_videos_per_prompt"):
        _whole(name, call[name])
    _whole("max_sequence_length", call["max_sequence_length"], at_least=2)
    scale = call["guidance_scale"]
    if not isinstance(scale, numbers.Real) or isinstance(scale, bool) or not math.isfinite(scale):
        raise AccelError(f"guidance_scale must be a finite number, such as 4.0 (1.0 is none), not {_kind(scale)}")


def check_output_type(output_type: Any) -> None:
    """Refuse a form of the result that diffusers would only reject after the last step."""
    if output_type not in OUTPUT_TYPES:
        raise AccelError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}")


def texts(prompt: str | list[str] | None) -> list[str]:
    """The prompts of a call as a list, empty when there are none."""
    if prompt is None:
        return []
    return [prompt] if isinstance(prompt, str) else prompt


def _whole(name: str, value: Any, at_least: int = 1) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise AccelError(f"{name} must be a whole number, not {_kind(value)}")
    if value < at_least:
        raise AccelError(f"{name}={value} is too small; the nearest that works is {at_least}")
    return int(value)


def _kind(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, (bool, float, str)) else type(value).__name__
