"""Many frames in one picture: the frames of one film, or the same frames of several films below each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SHEET_FRAMES = 16
_COMPARED_FRAMES = 8
_LARGEST_TILE = 256
_GAP = 4
_CAPTION = 16
_LABEL = 22
_PAPER, _INK = (250, 250, 250), (30, 30, 30)


def film_sheet(pixels: np.ndarray) -> tuple[Image.Image, int]:
    """Up to 16 evenly spaced frames of a film (T, H, W, 3), uint8, in rows; and how many they are."""
    chosen = _spread(len(pixels), _SHEET_FRAMES)
    columns = math.ceil(math.sqrt(len(chosen)))
    rows = [chosen[start : start + columns] for start in range(0, len(chosen), columns)]
    return _draw([("", pixels, row) for row in rows]), len(chosen)


def comparison_sheet(films: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """One labelled row per film, with the same frames of each; films are (T, H, W, 3), uint8, of one shape."""
    chosen = _spread(len(films[0][1]), _COMPARED_FRAMES)
    return _draw([(label, pixels, chosen) for label, pixels in films])


def _draw(rows: Sequence[tuple[str, np.ndarray, list[int]]]) -> Image.Image:
    """Rows of frames, each below its label if it has one, each frame above its number if there are several."""
    columns = max(len(chosen) for _, _, chosen in rows)
    frames, height, width = rows[0][1].shape[:3]
    shrink = min(1.0, _LARGEST_TILE / max(height, width))
    tile = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    caption = _CAPTION if frames > 1 else 0
    step = tile[0] + _GAP
    heights = [(_LABEL if label else 0) + tile[1] + caption + _GAP for label, _, _ in rows]
    size = (max(columns * step, _widest(rows)) + _GAP, sum(heights) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    top = _GAP
    for (label, pixels, chosen), row_height in zip(rows, heights, strict=True):
        below = top
        if label:
            pen.text((_GAP, top + 2), label, fill=_INK, font=_font(14))
            below += _LABEL
        for column, index in enumerate(chosen):
            left = _GAP + column * step
            frame = Image.fromarray(pixels[index]).resize(tile, Image.Resampling.LANCZOS)
            sheet.paste(frame, (left, below))
            if caption:
                pen.text((left, below + tile[1] + 1), str(index + 1), fill=_INK, font=_font(11))
        top += row_height
    return sheet


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` indices, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(position * (count - 1) / (most - 1)) for position in range(most)]


def _widest(rows: Sequence[tuple[str, np.ndarray, list[int]]]) -> int:
    return max(math.ceil(_font(14).getlength(label)) + _GAP if label else 0 for label, _, _ in rows)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
