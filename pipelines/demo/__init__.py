"""The built-in text-to-video model: where its weights lie and what a call of each size uses by default.

Nothing here needs torch, so a command line can read the defaults while it parses its arguments. The pipeline
classes are in :mod:`accel.pipelines.demo.pipeline`, the words that the model knows in
:mod:`accel.pipelines.demo.vocabulary`.
"""

import difflib
import json
from pathlib import Path
from typing import Any

from accel.errors import AccelError

SIZES = ("standard", "quick")


_HERE = Path(__file__).parent
#: The model's folder in diffusers' layout. Both sizes are the same weights; they differ in the defaults of a call.
WEIGHTS = _HERE / "weights"


def check_size(size: str) -> None:
    """AccelError for a size that the model lacks."""
    if size not in SIZES:
        nearest = difflib.get_close_matches(str(size), SIZES, n=1, cutoff=0.5)
        hint = f'; did you mean "{nearest[0]}"?' if nearest else ""
        raise AccelError(f'the demo has no size {size!r}: it has "standard" and "quick"{hint}')


def defaults(size: str = "standard") -> dict[str, Any]:
    """What a call of the demo uses unless told otherwise, read from `defaults.json`.

    `height` and `width` in pixels, `num_frames`, `num_inference_steps`, `guidance_scale` (`w` of equation 2
    in Imagen, arXiv 2205.11487; 1 is none), `max_sequence_length` in tokens of text, and `fps`, the frames a
    second at which the clip is meant to be shown (not an argument of the call).
    """
    check_size(size)
    return json.loads((_HERE / "defaults.json").read_text(encoding="utf-8"))[size]
