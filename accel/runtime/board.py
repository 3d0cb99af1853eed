"""The board on which methods tell each other what they did and need, without knowing each other.

It holds what was said during one call of a denoiser and is wiped before the next. What was done with a block is told to
the recorder.
"""

from __future__ import annotations

from typing import Any, Protocol


class TokenOrder(Protocol):
    """An order of the image tokens, a stream (batch, `length`, ...)."""

    @property
    def length(self) -> int:
        """How many tokens it orders."""

    def apply(self, x: Any) -> Any:
        """From the model's order into this one."""

    def restore(self, x: Any) -> Any:
        """From this order into the model's."""


class Board:
    """Demands and facts of the running denoiser call."""

    def __init__(self) -> None:
        self._demands: dict[str, str] = {}
        self._kept_dense: set[int] = set()
        self._kept_changes: set[int] = set()
        # In which order the blocks are given the image tokens in this call; None is the model's own.
        self.order: TokenOrder | None = None

    def wipe(self) -> None:
        """Forgets what was said; the session does this before each call."""
        self._demands.clear()
        self._kept_dense.clear()
        self._kept_changes.clear()
        self.order = None

    def demand_compute(self, method: str, reason: str) -> None:
        """Asks that every block of this call be computed, for example because a search or a refresh is due."""
        self._demands[method] = reason

    def compute_demanded(self, *, besides: str | None = None) -> str | None:
        """Who, besides one method, demands that this call be computed and why, or None."""
        others = (f"{method}: {reason}" for method, reason in self._demands.items() if method != besides)
        return next(others, None)

    def demand_dense(self, block: int) -> None:
        """Asks that the attention in a block be as in the plain pipeline, for example because a decision hangs on the
        block's change. In which formats its weights and activations are is left to quantization."""
        self._kept_dense.add(block)

    def dense_demanded(self, block: int) -> bool:
        """Whether the attention in the block must be as in the plain pipeline."""
        return block in self._kept_dense

    def keep_change(self, block: int) -> None:
        """Says, before a block is computed, that a cache means to keep what it changes; where the tokens turn out to be
        changed in place, it cannot."""
        self._kept_changes.add(block)

    def change_kept(self, block: int) -> bool:
        """Whether a cache means to keep what the block changes, for later steps."""
        return block in self._kept_changes
