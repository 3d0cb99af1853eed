"""A linear of the model whose weight is stored in INT8 or NVFP4.

The module keeps its identity and whatever hangs on it (hooks, a LoRA around it); its class, its weight and a few
attributes change. Scales are held as integers of the same bits, because `.to(dtype)`, layerwise casting and loading
convert whatever is a float.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.kernels.int8 import quantize_int8
from accel.kernels.nvfp4 import quantize_nvfp4
from accel.kernels.quantized_linear import ACTIVATIONS, SEEN, Activation, quantized_linear, stored_weight
from accel.kernels.rotation import BLOCK, rotate
from accel.methods.layer_choice import FLOATS
from accel.methods.read_only import ReadOnly
from accel.methods.weight_bytes import WeightFormat

BUFFERS = ("codes", "scales", "tensor_scale", "activation_scale")
ATTRIBUTES = ("weight_format", "rotated", "weight_dtype", "route", "ran", "seen")
# A power of two each: magnitudes from 0.006 to 2,688 times it are held, and a rotation makes them larger.
SCALE, ROTATED_SCALE = 1.0, 4.0


def store(weight: Tensor, weight_format: WeightFormat, rotated: bool) -> tuple[Tensor, ...]:
    """A weight (outputs, channels) in a format, as `accel.kernels.quantized_linear` takes it."""
    held = rotate(weight, 1 / BLOCK, torch.float32) if rotated else weight
    return quantize_int8(held) if weight_format == "int8" else quantize_nvfp4(held, by_error=True)


class QuantizedLinear(nn.Linear):
    """A linear with a stored weight; `hold` makes one of a plain linear.

    Attributes:
        weight_dtype: The dtype that the weight would have now if it were not stored.
        ran: int64 on the CPU, how often each of `ACTIVATIONS` ran.
        seen: float32 on the device, see `accel.kernels.quantized_linear.SEEN`.
    """

    weight_format: WeightFormat
    rotated: bool
    weight_dtype: torch.dtype
    route: Tensor
    ran: Tensor
    seen: Tensor
    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor | None
    activation_scale: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The numbers that the stored weight stands for, made anew, in `weight_dtype`; writing to them is refused."""
        # Layerwise casting holds weights in float8, into which nothing is decoded.
        decoded = self.weight_dtype if self.weight_dtype in FLOATS else torch.float32
        return stored_weight(self.stored, self.rotated, decoded).to(self.weight_dtype).as_subclass(ReadOnly)

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The stored weight, as `accel.kernels.quantized_linear` takes it."""
        if self.tensor_scale is None:
            return self.codes, self.scales.view(torch.float32)
        return self.codes, self.scales.view(torch.float8_e4m3fn), self.tensor_scale.view(torch.float32)

    def scale_activations(self, scale: float | None) -> None:
        """The power of two by which NVFP4 activations are scaled from now on; None is the one that is always there."""
        wanted = self.fixed_scale()
        if scale is not None:
            wanted = torch.tensor(scale, dtype=torch.float32, device="cpu").view(torch.int32)
        self.activation_scale.copy_(wanted)

    def fixed_scale(self) -> Tensor:
        """The scale of NVFP4 activations that is always there, as it is held."""
        return _fixed_scale(self.rotated, self.activation_scale.device)

    @staticmethod
    def resting() -> Tensor:
        """The route that leaves activations as they are."""
        return torch.tensor([ACTIVATIONS.index("plain"), 0, -1], device="cpu")

    def choose(self, activation: Activation, *, look: int = 0, measure: Activation | None = None) -> None:
        """The format of the activations from now on; whether to look for outliers in them (1), and for their largest
        magnitude too (2); and a format whose error is to be measured."""
        route = [ACTIVATIONS.index(activation), look, -1 if measure is None else ACTIVATIONS.index(measure)]
        if self.route.tolist() != route:
            self.route.copy_(torch.tensor(route, device="cpu"))

    def watch_on(self, device: torch.device) -> None:
        """Puts `seen` on the device of the activations."""
        if self.seen.device != device:
            with torch.inference_mode(False):
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
        self.weight_dtype = fn(torch.empty(0, dtype=self.weight_dtype, device=self.codes.device)).dtype
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight in {self.weight_format.upper()}{', rotated' if self.rotated else ''}"


Q = TypeVar("Q", bound=QuantizedLinear)


def hold(
    linear: nn.Linear,
    kind: type[Q],
    weight_format: WeightFormat,
    stored: tuple[Tensor, ...],
    *,
    rotated: bool,
    saved: bool,
) -> Q:
    """Takes the linear's weight away and makes it one of a kind, with what `store` made of that weight, or will.

    `saved` says whether the stored weight is what the model's state has. On the meta device, where the stored weight
    is still to be loaded, the rest is made on the CPU.
    """
    quantized: Any = linear
    device = torch.device("cpu") if stored[0].is_meta else stored[0].device
    # What is written to at every call must bear that in inference mode and outside; and a user may have set another
    # dtype and device for what says neither.
    with torch.inference_mode(False):
        seen = torch.zeros(len(SEEN), dtype=torch.float32, device=device)
        scale, route = _fixed_scale(rotated, device), kind.resting()
        ran = torch.zeros(len(ACTIVATIONS), dtype=torch.int64, device="cpu")
    tensor_scale = stored[2].view(torch.int32) if len(stored) == 3 else None
    # From here on nothing takes memory of the device.
    weight = linear._parameters.pop("weight")
    assert weight is not None
    linear.__class__ = kind
    linear.register_buffer("codes", stored[0], persistent=saved)
    linear.register_buffer("scales", stored[1].view(torch.uint8 if len(stored) == 3 else torch.int32), persistent=saved)
    # Where there is none, accelerate stumbles over the name of one that is not saved.
    linear.register_buffer("tensor_scale", tensor_scale, persistent=saved or tensor_scale is None)
    # It follows from `rotated`, or is a calibration's.
    linear.register_buffer("activation_scale", scale, persistent=False)
    quantized.weight_format, quantized.rotated, quantized.weight_dtype = weight_format, rotated, weight.dtype
    quantized.route, quantized.ran, quantized.seen = route, ran, seen
    return quantized


def _fixed_scale(rotated: bool, device: torch.device) -> Tensor:
    return torch.tensor(ROTATED_SCALE if rotated else SCALE, dtype=torch.float32, device=device).view(torch.int32)


def release(quantized: QuantizedLinear, weight: nn.Parameter, order: tuple[str, ...]) -> None:
    """Makes it a plain linear again, with a weight; `order` is that of its parameters."""
    linear: Any = quantized
    for name in (*BUFFERS, *ATTRIBUTES):
        delattr(linear, name)
    linear.__class__ = nn.Linear
    parameters = {**linear._parameters, "weight": weight}
    linear._parameters.clear()
    linear._parameters.update({name: parameters[name] for name in order})
