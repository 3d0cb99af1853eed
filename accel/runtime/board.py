"""The board on which methods tell each other what they did and need, without knowing each other.

It holds what was said during one call of a denoiser and is wiped before the next. Whatever is posted about a block is
also counted by the recorder.
"""

from __future__ import annotations

from accel.runtime.clock import Moment
from accel.runtime.recorder import Recorder


class Board:
    """Posts of the running denoiser call."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._posts: dict[int, str] = {}
        self._demands: dict[str, str] = {}

    def wipe(self) -> None:
        """Forgets what was said; the session does this before each call."""
        self._posts.clear()
        self._demands.clear()

    def post(self, method: str, what: str, moment: Moment, block: int) -> None:
        """Says what happened to a block: "computed", "reused"."""
        self._posts[block] = what
        self._recorder.event(method, what, moment, block)

    def posted(self, block: int) -> str | None:
        """What was last said of a block in this call."""
        return self._posts.get(block)

    def demand_compute(self, method: str, reason: str) -> None:
        """Asks that every block of this call be computed, for example because a search or a refresh is due."""
        self._demands[method] = reason

    def compute_demanded(self, *, besides: str | None = None) -> str | None:
        """Who, besides one method, demands that this call be computed and why, or None."""
        others = (f"{method}: {reason}" for method, reason in self._demands.items() if method != besides)
        return next(others, None)
