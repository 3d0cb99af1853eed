"""Where a sparse attention and what stands in for the blocks that it leaves out meet, without knowing each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from accel.runtime.clock import Moment

if TYPE_CHECKING:
    from accel.methods.sparse_call import Blocks, SparseCall


@dataclass(frozen=True)
class BlockChoice:
    """Who chooses the exact blocks, and out of what; names and values as in the settings."""

    chosen_by: str
    density: float
    block_size: int
    tiling: str


class Prior(Protocol):
    """What fills the slot "prior": attention over the blocks that are not exact, from which the exact ones go on."""

    @property
    def name(self) -> str:
        """The method's name, for refusals."""

    def expect(self, moment: Moment, query: Tensor, choice: BlockChoice) -> None:
        """Hears of every call of an attention before anything is computed, also of a dense one.

        Raises `AccelError` where it could not hold what such calls would ask of it.
        """

    def reuse(self, call: SparseCall) -> tuple[Tensor, Tensor] | None:
        """The output of the image queries, (B, S_image, H, D), and the counts (B, H, NQ) of their exact blocks, where
        the blocks and what stands for the others are those of an earlier step; None where they are to be found anew."""

    def refresh(self, call: SparseCall, chosen: Blocks) -> Tensor:
        """The output of the image queries over all blocks, from which on the chosen ones are exact."""


@dataclass
class Handover:
    """What the methods of one session hand to each other; whoever is missing leaves its place empty."""

    # Whether a method chooses exact blocks.
    attention: bool = False
    prior: Prior | None = None
