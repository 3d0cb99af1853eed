"""A film that is made small enough to be part of a page."""

from __future__ import annotations

import numpy as np

from accel.reporting.video import mp4

# Chosen by us: a page with it, in which four bytes stand for three, can still be mailed.
MOST_BYTES = 12_000_000
# Shares of its sides that are tried in turn, after the film as it is; beside them the harder compression that goes with
# smaller pictures.
_SHARES = (1.0, 0.5, 0.25)
_CRF = 24


def bounded(pixels: np.ndarray, fps: float, whole: bytes, most: int) -> tuple[bytes, str]:
    """A film of at most so many bytes, and in words what it has lost; "" for the whole film.

    It is compressed harder first, then made smaller, and where that does not do, cut.

    Args:
        pixels: (T, H, W, 3), uint8.
        fps: frames a second.
        whole: the film as `mp4` makes it.
        most: the bound.
    """
    if len(whole) <= most:
        return whole, ""
    for share in _SHARES:
        made = mp4(pixels, fps, share=share, crf=_CRF)
        if len(made) <= most:
            return made, "all of it, compressed harder" if share == 1 else f"all of it, {_smaller(share)}"
    frames = len(pixels)
    while len(made) > most and frames > 1:
        # A film of half the frames may be more than half as large: its first picture is the largest.
        frames = max(1, min(frames - 1, frames * most // len(made)))
        made = mp4(pixels[:frames], fps, share=share, crf=_CRF)
    return made, f"its first {frames} of {len(pixels)} frames, {_smaller(share)}"


def _smaller(share: float) -> str:
    return f"at {share:.0%} of its width and height, and compressed harder"
