"""What methods keep between the steps of a run, never longer and never across guidance branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from accel.runtime.clock import Moment

T = TypeVar("T")


class BranchState(Generic[T]):
    """One value per guidance branch, made on first use.

    All are dropped when the run, the chunk or the denoiser changes: of two experts, the first does not come back.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[str, T] = {}
        self._period: tuple[int, int, str] | None = None

    def at(self, moment: Moment) -> T:
        """The value for the branch of this moment."""
        period = (moment.run, moment.chunk, moment.denoiser)
        if period != self._period:
            self.clear()
            self._period = period
        if moment.branch not in self._values:
            self._values[moment.branch] = self._make()
        return self._values[moment.branch]

    def values(self) -> list[T]:
        """All values of the running period."""
        return list(self._values.values())

    def clear(self) -> None:
        """Forgets everything."""
        self._values.clear()
        self._period = None
