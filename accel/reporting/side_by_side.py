"""Several clips of one prompt beside each other: as one film, and as a sheet with what differs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from accel.reporting.contact_sheet import comparison_sheet

# How much larger a difference is drawn than it is; chosen by us, so that one of a hundredth of the range can be seen.
AMPLIFIED = 8
_LABEL = 20
_GAP = 4
_PAPER, _INK = (250, 250, 250), (30, 30, 30)
_GRAY = 128.0

Film = tuple[str, np.ndarray]


def sheet_with_differences(films: Sequence[Film]) -> Image.Image:
    """The same frames of each film, and below each but the first its difference from the first, amplified around gray.

    Films are a label and (T, H, W, 3), uint8, of one shape; the first is what the others are compared with.
    """
    rows = [films[0]]
    for label, pixels in films[1:]:
        rows += [
            (label, pixels),
            (f"{label}: difference, {AMPLIFIED} times as large", _difference(pixels, films[0][1])),
        ]
    return comparison_sheet(rows)


def film_of_films(films: Sequence[Film]) -> np.ndarray:
    """All films in one, each below its label, in as square a pattern as it gets; (T, H, W, 3), uint8."""
    count, height, width = films[0][1].shape[:3]
    columns = math.ceil(math.sqrt(len(films)))
    rows = math.ceil(len(films) / columns)
    cell = height + _LABEL
    canvas = np.full((count, rows * (cell + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), _PAPER, np.uint8)
    for index, (label, pixels) in enumerate(films):
        top = _GAP + (index // columns) * (cell + _GAP)
        left = _GAP + (index % columns) * (width + _GAP)
        canvas[:, top : top + _LABEL, left : left + width] = _words(label, width)
        canvas[:, top + _LABEL : top + cell, left : left + width] = pixels
    return canvas


def _difference(pixels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    apart = pixels.astype(np.float32) - reference.astype(np.float32)
    return np.clip(_GRAY + AMPLIFIED * apart, 0, 255).astype(np.uint8)


def _words(text: str, width: int) -> np.ndarray:
    strip = Image.new("RGB", (width, _LABEL), _PAPER)
    font = ImageFont.load_default(12)
    while len(text) > 1 and font.getlength(text) > width:
        text = f"{text[:-2]}…"
    ImageDraw.Draw(strip).text((0, 2), text, fill=_INK, font=font)
    return np.asarray(strip)
