"""A linear of the model that becomes one with a stored weight, and the very same linear again.

The module keeps its identity and whatever hangs on it (hooks, a LoRA around it); its class, its weight and a few
attributes change. Scales are held as integers of the same bits, because `.to(dtype)` and layerwise casting convert
whatever is a float. Copies, pickles and saved models are those of the original.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.errors import AccelError
from accel.kernels.int8 import quantize_int8
from accel.kernels.nvfp4 import quantize_nvfp4
from accel.kernels.quantized_linear import ACTIVATIONS, SEEN, Activation, quantized_linear, stored_weight
from accel.kernels.rotation import BLOCK, rotate
from accel.methods.original_weights import Original, WeightFile
from accel.methods.weight_bytes import WeightFormat

_BUFFERS = ("codes", "scales", "tensor_scale", "activation_scale")
_ATTRIBUTES = ("weight_format", "rotated", "route", "ran", "seen", "original", "parameter_names")
# A power of two each: magnitudes from 0.006 to 2,688 times it are held, and a rotation makes them larger.
_SCALE, _ROTATED_SCALE = 1.0, 4.0


def store(weight: Tensor, weight_format: WeightFormat, rotated: bool) -> tuple[Tensor, ...]:
    """A weight (outputs, channels) in a format, as `accel.kernels.quantized_linear` takes it."""
    held = rotate(weight, 1 / BLOCK, torch.float32) if rotated else weight
    return quantize_int8(held) if weight_format == "int8" else quantize_nvfp4(held, by_error=True)


class QuantizedLinear(nn.Linear):
    """A linear whose weight is stored in INT8 or NVFP4; made by `convert`, undone by `revert`.

    Attributes:
        ran: int64 on the CPU, how often each of `ACTIVATIONS` ran.
        seen: float32 on the device, see `accel.kernels.quantized_linear.SEEN`.
    """

    weight_format: WeightFormat
    rotated: bool
    route: Tensor
    ran: Tensor
    seen: Tensor
    original: Original
    parameter_names: tuple[str, ...]
    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor | None
    activation_scale: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The numbers that the stored weight stands for, made anew, in the dtype of the original."""
        return stored_weight(self.stored, self.rotated, self.original.dtype)

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The stored weight, as `accel.kernels.quantized_linear` takes it."""
        if self.tensor_scale is None:
            return self.codes, self.scales.view(torch.float32)
        return self.codes, self.scales.view(torch.float8_e4m3fn), self.tensor_scale.view(torch.float32)

    def choose(self, activation: Activation, *, look: bool = False, measure: Activation | None = None) -> None:
        """The format of the activations from now on, whether to look for outliers in them, and a format whose error is
        to be measured."""
        route = [ACTIVATIONS.index(activation), int(look), -1 if measure is None else ACTIVATIONS.index(measure)]
        if self.route.tolist() != route:
            self.route.copy_(torch.tensor(route))

    def watch_on(self, device: torch.device) -> None:
        """Puts `seen` on the device of the activations."""
        if self.seen.device != device:
            self.seen = self.seen.to(device)

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(self, QuantizedLinear):
            # Somebody's hook took this method while the layer was quantized, and it is quantized no more.
            return F.linear(input, self.weight, self.bias)
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        scale = self.activation_scale.view(torch.float32)
        return quantized_linear(input, self.stored, self.bias, scale, self.rotated, self.route, self.ran, self.seen)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedLinear:
        super()._apply(fn, recurse)
        # What the original will be given back in.
        self.original.dtype = fn(torch.empty(0, dtype=self.original.dtype, device=self.codes.device)).dtype
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        _require_kept(self, "saved")
        destination[prefix + "weight"] = self.original.numbers().to(self.original.dtype)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __reduce_ex__(self, protocol: Any) -> Any:
        _require_kept(self, "copied")
        state = {name: value for name, value in self.__getstate__().items() if name not in _ATTRIBUTES}  # type: ignore[operator]
        parameters = dict(state["_parameters"])
        weight = self.original.numbers().to(self.codes.device, self.original.dtype)
        parameters["weight"] = nn.Parameter(weight, requires_grad=self.original.requires_grad)
        state["_parameters"] = {name: parameters[name] for name in self.parameter_names}
        state["_buffers"] = {name: value for name, value in state["_buffers"].items() if name not in _BUFFERS}
        state["_non_persistent_buffers_set"] = state["_non_persistent_buffers_set"] - set(_BUFFERS)
        return _plain, (), state

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight in {self.weight_format.upper()}{', rotated' if self.rotated else ''}"


def convert(
    linear: nn.Linear,
    weight_format: WeightFormat,
    stored: tuple[Tensor, ...],
    *,
    rotated: bool,
    file: WeightFile | None = None,
) -> QuantizedLinear:
    """Makes the linear a quantized one with a weight that `store` made of its own.

    The original goes to host memory, or is dropped where a file has it.
    """
    quantized: Any = linear
    names = tuple(linear._parameters)
    weight = linear._parameters.pop("weight")
    assert weight is not None
    linear.__class__ = QuantizedLinear
    scale = torch.tensor(_ROTATED_SCALE if rotated else _SCALE, device=weight.device)
    linear.register_buffer("codes", stored[0], persistent=False)
    linear.register_buffer("scales", stored[1].view(torch.uint8 if len(stored) == 3 else torch.int32), persistent=False)
    linear.register_buffer("tensor_scale", stored[2].view(torch.int32) if len(stored) == 3 else None, persistent=False)
    linear.register_buffer("activation_scale", scale.view(torch.int32), persistent=False)
    quantized.weight_format, quantized.rotated, quantized.parameter_names = weight_format, rotated, names
    quantized.route = torch.tensor([0, 0, -1])
    quantized.ran = torch.zeros(len(ACTIVATIONS), dtype=torch.int64)
    quantized.seen = torch.zeros(len(SEEN), device=weight.device)
    quantized.original = Original(weight, file)
    return quantized


def revert(quantized: QuantizedLinear) -> None:
    """Makes it the linear that it was, on the device where it is now; raises `AccelError` where its file is gone."""
    linear: Any = quantized
    weight = quantized.original.give_back(quantized.codes.device)
    names = quantized.parameter_names
    for name in (*_BUFFERS, *_ATTRIBUTES):
        delattr(linear, name)
    linear.__class__ = nn.Linear
    parameters = {**linear._parameters, "weight": weight}
    linear._parameters.clear()
    linear._parameters.update({name: parameters[name] for name in names})


def _plain() -> nn.Linear:
    return nn.Linear.__new__(nn.Linear)


def _require_kept(linear: QuantizedLinear, done: str) -> None:
    if not linear.original.kept:
        raise AccelError(
            f"a model whose original weights were dropped with keep_original=False cannot be {done}: "
            "call accel.disable(pipe) first"
        )
