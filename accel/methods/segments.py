"""Segments: blocks each of which is given the very output of the block before, and the change over all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from accel.kernels.delta import apply_delta
from accel.methods.held_delta import HeldDelta
from accel.pipelines.sites import TEXT_STREAM, BlockSite
from accel.runtime.board import TokenOrder

Streams = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Segment:
    """The change from block `first` to block `last`, as it was captured at `step`.

    Attributes:
        deltas: by the place of the stream among those of the blocks; one that nothing needs behind `last` has none.
        room: bytes that they may come to take, with slopes.
    """

    first: int
    last: int
    step: int
    deltas: dict[int, HeldDelta]
    room: int

    def fits(self, streams: Streams) -> bool:
        """Whether it is of streams such as these."""
        return all(delta.fits(streams[place]) for place, delta in self.deltas.items())

    def added(self, streams: Streams, distance: float) -> Streams:
        """The streams with the change, its slope followed so many steps."""
        return tuple(
            apply_delta(stream, *self.deltas[place].read(stream.dtype), distance) if place in self.deltas else stream
            for place, stream in enumerate(streams)
        )

    def reordered(self, stream: int, before: TokenOrder | None, now: TokenOrder | None) -> Segment:
        """The same for tokens of that stream in another order."""

        def change(x: torch.Tensor) -> torch.Tensor:
            x = x if before is None else before.restore(x)
            # Where the number of tokens changed, it will not be reused.
            return now.apply(x) if now is not None and now.length == x.shape[1] else x

        return replace(self, deltas={**self.deltas, stream: self.deltas[stream].mapped(change)})

    @property
    def nbytes(self) -> int:
        """Bytes that the deltas take."""
        return sum(delta.nbytes for delta in self.deltas.values())


@dataclass
class OpenSegment:
    """A segment that is being captured; `last` is its last block so far."""

    first: int
    last: BlockSite
    inputs: Streams
    outputs: Streams
    input_versions: list[int]
    output_versions: list[int]

    @classmethod
    def of(cls, site: BlockSite, inputs: Streams, outputs: Streams) -> OpenSegment:
        """Of one block."""
        return cls(site.index, site, inputs, outputs, versions(inputs), versions(outputs))

    def leads_to(self, inputs: Streams) -> bool:
        """Whether a block is given what the last one returned; not where the parent joined the streams in between."""
        return len(inputs) == len(self.outputs) and all(a is b for a, b in zip(inputs, self.outputs, strict=True))

    def add(self, site: BlockSite, outputs: Streams) -> None:
        """Takes the next block."""
        self.last, self.outputs, self.output_versions = site, outputs, versions(outputs)

    @property
    def intact(self) -> bool:
        """Whether nobody changed in place what goes in and what comes out."""
        return versions(self.inputs + self.outputs) == self.input_versions + self.output_versions

    def changes(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Output and input of the streams that something needs behind the segment, by their place."""
        names = self.last.stack.streams
        ended = TEXT_STREAM if self.last.ends_text else None
        pairs = enumerate(zip(self.outputs, self.inputs, strict=True))
        return {place: pair for place, pair in pairs if names[place] != ended}


def alike(inputs: Streams, outputs: Streams) -> bool:
    """Whether a block returns streams such as it was given, between which there is a change.

    Under autocast a block may be given a half type and return float32, and of a model that is spread over several
    devices, a block is called with tokens that lie on the device before.
    """
    pairs = zip(inputs, outputs, strict=True)
    return all((a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) for a, b in pairs)


def versions(streams: Streams) -> list[int]:
    """What changes with every change in place."""
    # Tensors made in inference mode cannot be followed; there the objects alone tell.
    return [0 if tensor.is_inference() else tensor._version for tensor in streams]
