"""What a clip does from frame to frame: how much it moves, how much it flickers, and where it stands still.

All three take the frames as they are, without an estimate of the flow: beside a reference of the same seed, which
moves alike, what differs is the fault.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from accel.errors import AccelError
from accel.measure.frames import as_frames, as_pair

# A step of the reference below this mean difference counts as none: an eightieth of one of 256 levels. A circle of
# a hundredth of the frame that crosses it in a hundred frames makes steps of about 5e-4.
STILL = 5e-5
# A step counts as frozen below this share of the reference's (chosen by us; docs of `frozen_share`).
FROZEN = 0.1


def motion(clip: Any) -> float:
    """The mean absolute difference between neighbouring frames of a clip (T, H, W, 3), 0 for one that stands still.

    Raises:
        ValueError: another shape, or values that are not finite.
        AccelError: fewer than two frames.
    """
    return _steps(as_frames(clip), "motion").mean().item()


def flicker(clip: Any) -> float:
    """The mean absolute second difference in time, |x[t+1] - 2 x[t] + x[t-1]|, of a clip (T, H, W, 3).

    A definition of our own: 0 for what stands still or fades evenly, 1.95 sigma for a still clip with independent
    Gaussian noise of standard deviation sigma. A moving edge counts too, so that the figure is to be read beside
    that of a reference.

    Raises:
        ValueError: another shape, or values that are not finite.
        AccelError: fewer than three frames.
    """
    frames = as_frames(clip)
    if len(frames) < 3:
        raise AccelError(f"flicker needs three frames, the clip has {len(frames)}")
    return frames.diff(n=2, dim=0).abs().mean().item()


def frozen_share(clip: Any, reference: Any) -> float:
    """The share of the reference's moving steps at which the clip stands still, 1 for a frozen clip.

    A step goes from one frame to the next; it moves where the mean absolute difference is at least 5e-5, and the
    clip stands still there below a tenth of the reference's difference.

    Args:
        clip, reference: (T, H, W, 3), in [0, 1].

    Raises:
        ValueError: as for :func:`accel.measure.frames.as_pair`.
        AccelError: fewer than two frames, or a reference that does not move.
    """
    first, second = as_pair(clip, reference)
    ours, theirs = _steps(first, "a frozen clip"), _steps(second, "a frozen clip")
    moving = theirs >= STILL
    if not moving.any():
        raise AccelError("nothing can be said to be frozen: the reference does not move")
    return (ours < FROZEN * theirs)[moving].double().mean().item()


def _steps(frames: Tensor, what: str) -> Tensor:
    """(T - 1,) the mean absolute difference of each frame to the one before."""
    if len(frames) < 2:
        raise AccelError(f"{what} needs two frames, the clip has {len(frames)}")
    return frames.diff(dim=0).abs().mean((1, 2, 3))
