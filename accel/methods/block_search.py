"""AdaSpa's precise search (arXiv 2502.21079, sections 3.2 and 3.3): rarely, exactly, and cheaply the second time.

The first search of a layer is fused: it computes dense attention, keeps the log-sum-exp of every query and measures
how much attention falls on each key block. Later searches reuse that log-sum-exp, since the ranking of blocks hardly
depends on it, and cost a product of queries and keys alone. Between searches the choice stays, as one bit for each
pair of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from accel.kernels.block_bits import lists_of, to_bits
from accel.kernels.block_statistics import BlockStatistics
from accel.methods.base import steps_in
from accel.methods.block_sizes import same_sizes
from accel.methods.sparse_call import Blocks, SparseCall
from accel.runtime.clock import Moment
from accel.runtime.state import BranchState

# Gets a call, the scores of its blocks and their attention mass, both (B, H, NQ, N).
Choose = Callable[[SparseCall, Tensor, Tensor], Blocks]


@dataclass
class Found:
    """What a search of one layer found, for the calls until the next.

    Attributes:
        lse: (B, H, S) float32, the log-sum-exp of the image's queries, for the searches to come; None after the last.
        shape: (B, H, S) of the image's queries.
        bits: the chosen blocks, as `accel.kernels.block_bits` packs them.
        width: the longest list among them.
        searched: the step from which the choice is.
        sizes, image: as in the call.
    """

    lse: Tensor | None
    shape: tuple[int, ...]
    bits: Tensor
    width: int
    searched: int
    sizes: Tensor
    image: slice

    @classmethod
    def by(cls, call: SparseCall, lse: Tensor | None, chosen: Blocks, searched: int) -> Found:
        """The choice that was made for a call, packed."""
        blocks, counts = chosen
        bits = to_bits(blocks, counts, call.sizes.shape[1])
        return cls(lse, _shape(call), bits, blocks.shape[-1], searched, call.sizes, call.image)

    def fits(self, call: SparseCall) -> bool:
        """Whether the choice was made for blocks such as the call's: a callback may change the text within a run."""
        same = self.shape == _shape(call) and self.bits.device == call.query.device
        return same and self.image == call.image and same_sizes(self.sizes, call.sizes)

    def chosen(self) -> Blocks:
        """The lists of blocks again, for one call."""
        return lists_of(self.bits, self.width, self.sizes.shape[1])

    @property
    def nbytes(self) -> int:
        return (0 if self.lse is None else self.lse.nbytes) + self.bits.nbytes + self.sizes.nbytes


def _shape(call: SparseCall) -> tuple[int, ...]:
    batch, tokens, heads, _ = call.image_query.shape
    return batch, heads, tokens


class BlockSearch:
    """The searches of one method; `steps` are fractions of a run, `note` hears of each search what is held then."""

    def __init__(self, steps: tuple[float, ...], note: Callable[[int], None]) -> None:
        self._fractions = steps
        self._note = note
        self._steps: list[int] = []
        self._state: BranchState[dict[int, Found]] = BranchState(dict)

    def start_run(self, num_steps: int) -> None:
        """Forgets what was found and places the searches in a run of so many steps."""
        self.clear()
        self._steps = sorted({steps_in(fraction, num_steps) for fraction in self._fractions})

    def clear(self) -> None:
        """Forgets what was found."""
        self._state.clear()

    @property
    def first(self) -> int:
        """The step of the first search."""
        return self._steps[0] if self._steps else 0

    def due(self, moment: Moment) -> bool:
        """Whether the step is one of the searches, at which every layer has to be computed."""
        return moment.step in self._steps

    def attend(
        self, call: SparseCall, choose: Choose, statistics: BlockStatistics | None
    ) -> tuple[Tensor | None, Blocks]:
        """The choice for this call, and where a first search was due, its dense output in the call's order."""
        layers = self._state.at(call.moment)
        due = max((step for step in self._steps if step <= call.moment.step), default=0)
        layer = layers.get(call.layer)
        mean_key = None if statistics is None else statistics.mean_key
        if layer is None or not layer.fits(call):
            out, lse = call.dense(slice(None))
            lse = lse[:, :, call.rows(call.image)].contiguous()
            return out, self._keep(layers, call, lse, choose, mean_key, due)
        if layer.searched < due and layer.lse is not None:
            return None, self._keep(layers, call, layer.lse, choose, mean_key, due)
        return None, layer.chosen()

    def _keep(
        self,
        layers: dict[int, Found],
        call: SparseCall,
        lse: Tensor,
        choose: Choose,
        mean_key: Tensor | None,
        due: int,
    ) -> Blocks:
        chosen = self._look(call, lse, choose, mean_key)
        another = due < self._steps[-1] if self._steps else False
        layers[call.layer] = Found.by(call, lse if another else None, chosen, due)
        self._note(sum(layer.nbytes for branch in self._state.values() for layer in branch.values()))
        return chosen

    def _look(self, call: SparseCall, lse: Tensor, choose: Choose, mean_key: Tensor | None) -> Blocks:
        mass, tail_mass = call.mass(lse, mean_key)
        # With a tail, what matters is not how much falls on a block but how much of it the tail gets wrong.
        return choose(call, mass if tail_mass is None else (mass - tail_mass).abs(), mass)
