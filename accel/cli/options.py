"""What the options of several commands have in common."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import typer

# Arguments of a pipeline's call that have an option, beside the prompt.
CALL = ("negative_prompt", "num_inference_steps", "guidance_scale", "height", "width", "num_frames")


class Dtype(StrEnum):
    """Number formats of the weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Offload(StrEnum):
    """Ways to keep weights in the main memory while they are not needed."""

    MODEL = "model"
    GROUP = "group"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a whole number") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a number") from error


WHOLE: dict[str, Any] = {"parser": _whole, "metavar": "N"}
NUMBER: dict[str, Any] = {"parser": _number, "metavar": "X"}


def option(panel: str, help_text: str, *names: str, **rules: Any) -> Any:
    """An option in a panel of the help; its default is not shown, since left out means decided later."""
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False, **rules)
