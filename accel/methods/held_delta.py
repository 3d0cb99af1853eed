"""The change of a segment as it is held between steps: in which dtype, and with or without a slope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from accel.kernels.delta import compute_delta, update_delta

FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FLOAT8).max


@dataclass(frozen=True)
class _Codes:
    """A tensor in float8, with a float32 scale for each token."""

    codes: Tensor
    scale: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Codes:
        # The smallest normal number keeps tokens of zeros from being divided by zero, also where smaller ones are zero.
        scale = (values.abs().amax(-1, keepdim=True).float() / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        return cls((values.float() / scale).to(FLOAT8), scale)

    def read(self, dtype: torch.dtype) -> Tensor:
        return (self.codes.float() * self.scale).to(dtype)


@dataclass(frozen=True)
class HeldDelta:
    """A change of one stream and, where two captures have told it, its slope: the change of the change per step."""

    delta: Tensor | _Codes
    slope: Tensor | _Codes | None
    dtype: torch.dtype
    shape: torch.Size
    device: torch.device

    @classmethod
    def make(
        cls,
        output: Tensor,
        hidden: Tensor,
        earlier: HeldDelta | None,
        gap: int,
        *,
        sloped: bool,
        dtype: torch.dtype | None,
    ) -> tuple[HeldDelta, Tensor]:
        """The change `output - hidden`, held in `dtype` (None for that of the stream), and its statistics.

        With an earlier change, captured `gap` steps before, the third statistic is the squared distance from that one
        as its whole slope continues it, and the last from that one as it was; with `sloped` both give the slope.
        """
        held = output.dtype if dtype in (None, FLOAT8) else dtype
        slope = None
        if earlier is None:
            delta, stats = compute_delta(output, hidden)
            delta = delta.to(held)
        else:
            before, before_slope = earlier.read(held)
            if sloped:
                delta, slope, stats = update_delta(output, hidden, before, before_slope, gap)
            elif held == output.dtype:
                delta, stats = compute_delta(output, hidden, before)
            else:
                delta, _, stats = update_delta(output, hidden, before, None, gap)
        made: list[Tensor | _Codes | None] = [delta, slope]
        if dtype == FLOAT8:
            made = [None if part is None else _Codes.of(part) for part in (delta, slope)]
        assert made[0] is not None
        return cls(made[0], made[1], output.dtype, output.shape, output.device), stats

    def fits(self, stream: Tensor) -> bool:
        """Whether it is of a stream such as this."""
        return stream.shape == self.shape and stream.device == self.device and stream.dtype == self.dtype

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The change and its slope; `dtype` is for those in float8, others come as they are held."""
        delta, slope = (part.read(dtype) if isinstance(part, _Codes) else part for part in (self.delta, self.slope))
        assert delta is not None
        return delta, slope

    def mapped(self, change: Callable[[Tensor], Tensor]) -> HeldDelta:
        """The same with the tokens of every tensor, (batch, tokens, channels), in another order."""

        def of(part: Tensor | _Codes) -> Tensor | _Codes:
            if not isinstance(part, _Codes):
                return change(part)
            # Not every device moves float8.
            return _Codes(change(part.codes.view(torch.uint8)).view(FLOAT8), change(part.scale))

        return replace(self, delta=of(self.delta), slope=None if self.slope is None else of(self.slope))

    @staticmethod
    def bytes_of(stream: Tensor, *, sloped: bool, dtype: torch.dtype | None) -> int:
        """What `make` will take for such a stream, once it has its slope if it is to have one."""
        size = stream.element_size() if dtype is None else dtype.itemsize
        scales = 4 * (stream.numel() // stream.shape[-1]) if dtype == FLOAT8 else 0
        return (stream.numel() * size + scales) * (2 if sloped else 1)

    @property
    def nbytes(self) -> int:
        parts = [part for part in (self.delta, self.slope) if part is not None]
        return sum(p.codes.nbytes + p.scale.nbytes if isinstance(p, _Codes) else p.nbytes for p in parts)
