"""How many tokens count in each block of a call, as one tensor for as long as it is the same.

What is kept from step to step belongs to blocks of certain sizes. Whether a later call has the same is asked in every
layer, and asking the device makes the host wait; an object that is the same needs no question.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.arrangement import Arrangement
from accel.runtime.clock import Moment


class BlockSizes:
    """The sizes of one run's calls, for each denoiser, guidance branch and arrangement."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, Arrangement, int], tuple[Tensor | None, Tensor]] = {}

    def of(self, moment: Moment, arrangement: Arrangement, lengths: Tensor | None, batch: int) -> Tensor:
        """(batch, N) int32; `lengths`, (B,) or (1,), says how many text tokens of each sample count, all where None.

        The same object as at the call before as long as the numbers are; the device is asked only where `lengths` is
        another object, which is once for all layers of a call.
        """
        place = (moment.denoiser, moment.branch, arrangement, batch)
        known = self._known.get(place)
        if known is not None and known[0] is lengths:
            return known[1]
        if lengths is None:
            sizes = arrangement.sizes.repeat(batch, 1)
        else:
            sizes = arrangement.with_text_lengths(lengths.expand(batch))
        if known is not None and torch.equal(known[1], sizes):
            sizes = known[1]
        self._known[place] = lengths, sizes
        return sizes

    def clear(self) -> None:
        """Forgets everything."""
        self._known.clear()


def same_sizes(one: Tensor, other: Tensor) -> bool:
    """Whether blocks have the same sizes; the device is asked only where these are two objects of one shape."""
    return one is other or (one.shape == other.shape and torch.equal(one, other))
