"""The linears that lose most in NVFP4, chosen while weights come one by one: those that all together would give."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor, nn

from accel.methods.quantized_linear import hold, release, store
from accel.methods.sensitive import StaticFormat, lost
from accel.methods.stored_linear import StoredLinear


class Spared:
    """At most `number` linears, each with what its weight is held in besides while it is among them."""

    def __init__(self, number: int, static_format: StaticFormat) -> None:
        self._number = number
        self._static_format = static_format
        # The one that loses least stands first; of two that lose as much, the earlier one.
        self._worst: list[tuple[float, int, str, tuple[Tensor, ...]]] = []

    def see(self, path: str, place: int, weight: Tensor, linear: StoredLinear) -> None:
        """Takes a linear that has just been stored in NVFP4, with its original weight and its place among all."""
        if self._number == 0:
            return
        error = lost(weight, linear.stored, linear.rotated)
        if len(self._worst) == self._number and (error, place) < self._worst[0][:2]:
            return
        kept = store(weight, "int8", linear.rotated) if self._static_format == "int8" else (weight.clone(),)
        heapq.heappush(self._worst, (error, place, path, kept))
        if len(self._worst) > self._number:
            heapq.heappop(self._worst)

    def settle(self, model: nn.Module) -> list[str]:
        """Gives those that were found what they are held in; returns their paths."""
        for _, _, path, kept in self._worst:
            linear = model.get_submodule(path)
            assert isinstance(linear, StoredLinear)
            dtype, rotated, order = linear.weight_dtype, linear.rotated, ("weight", *linear._parameters)
            weight = kept[0] if self._static_format == "16bit" else torch.empty(0, dtype=dtype, device=kept[0].device)
            release(linear, nn.Parameter(weight, requires_grad=False), order)
            if self._static_format == "int8":
                hold(linear, StoredLinear, "int8", kept, rotated=rotated, saved=True)
        found = [path for _, _, path, _ in self._worst]
        self._worst.clear()
        return found
