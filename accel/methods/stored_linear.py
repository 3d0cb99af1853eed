"""A linear whose stored weight is all that the model has: saved, copied and loaded as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from accel.kernels.nvfp4 import GROUP
from accel.methods.layer_choice import Layer, block_of, linears, matches
from accel.methods.quantized_linear import QuantizedLinear, hold, release
from accel.methods.weight_bytes import WeightFormat
from accel.pipelines.sites import Denoiser


class StoredLinear(QuantizedLinear):
    """A linear without an original; made by `hold`, or by `expect` where the stored weight is still to be loaded.

    Until `choose` says otherwise, activations are left as they are; in copies they always are.
    """

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[misc]
        fresh = {"route": self.resting(), "ran": torch.zeros_like(self.ran), "seen": torch.zeros_like(self.seen)}
        return {**state, **fresh, "activation_scale": self.fixed_scale()}


def expect(linear: nn.Linear, weight_format: WeightFormat, *, rotated: bool) -> StoredLinear:
    """Makes the linear one whose stored weight is yet on the meta device."""
    outputs, channels = linear.out_features, linear.in_features

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    stored: tuple[Tensor, ...]
    if weight_format == "int8":
        stored = empty(outputs, channels, dtype=torch.int8), empty(outputs, dtype=torch.float32)
    else:
        stored = (
            empty(outputs, channels // 2, dtype=torch.uint8),
            empty(outputs, channels // GROUP, dtype=torch.float8_e4m3fn),
            empty(dtype=torch.float32),
        )
    return hold(linear, StoredLinear, weight_format, stored, rotated=rotated, saved=True)


def rest(linear: StoredLinear) -> None:
    """Leaves activations as they are again, and forgets what ran."""
    linear.choose("plain")
    linear.scale_activations(None)
    linear.ran.zero_()
    linear.seen.zero_()


def decode(linear: StoredLinear) -> None:
    """Makes it a plain linear with the numbers that its stored weight stands for, which are not the original's."""
    weight = nn.Parameter(linear.weight.clone(), requires_grad=False)
    release(linear, weight, ("weight", *linear._parameters))


def stored_layers(denoiser: Denoiser, modulation: Sequence[str]) -> tuple[list[Layer], Counter[str]]:
    """The linears of a denoiser that came with stored weights, and the number of others."""
    found: list[Layer] = []
    others: Counter[str] = Counter()
    for path, module in linears(denoiser.module):
        if isinstance(module, StoredLinear):
            modulates = any(matches(path, entry) for entry in modulation)
            found.append(Layer(denoiser.name, len(found), path, module, block_of(denoiser, path), modulates))
        else:
            others["loaded as they are"] += 1
    return found, others
