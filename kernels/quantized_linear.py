"""A linear whose weight is stored in INT8 or NVFP4, on activations in the format that a number in host memory tells.

6Bit-Diffusion (arXiv 2603.18742) keeps one NVFP4 weight and chooses the activations' format for each layer and step;
for INT8 activations the weight is converted for that call alone. The choice is read when the operation runs, so that
a compiled graph stays one graph whatever is chosen. `multiply` is the one place where a product is picked.
"""

import importlib
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.kernels import checks
from accel.kernels.forms import made_for, without_autocast
from accel.kernels.int8 import int8_linear, quantize_int8
from accel.kernels.int8.cpu import has_integer_product
from accel.kernels.nvfp4 import dequantize_nvfp4, nvfp4_to_int8
from accel.kernels.nvfp4_linear import NATIVE, nvfp4_weight_linear, rounding_nvfp4_linear
from accel.kernels.rotation import BLOCK, require_rotatable, rotate

__all__ = [
    "ACTIVATIONS",
    "SEEN",
    "Activation",
    "emulation",
    "fitting_scale",
    "multiply",
    "quantized_linear",
    "stored_weight",
]

# "plain" leaves the activations as they are.
Activation = Literal["plain", "nvfp4", "int8"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
# What `seen` holds, in this order.
SEEN = (
    "largest int8 scale",
    "largest nvfp4 scale",
    "outlier ratio",
    "error",
    "largest magnitude",
    "mean magnitude",
    "norm of the product",
)
# Compute capabilities whose tensor cores lost their integers.
_WITHOUT_INT8 = (103, 110)
# Until this version of Triton, sm_100 multiplies integers with the instruction of sm_80, which is slow there.
_INT8_ON_100 = (3, 9)
# A rotation makes numbers up to 128 times as large, which float16 might not hold; powers of two are exact.
_ROTATED = float(BLOCK)
# Without the mantissa, what is left of a float32 is a power of two.
_EXPONENT = 0x7F800000
# The largest magnitude's group scale then lies between 85 and 171, of 448 that E4M3 holds. Chosen by us.
_BELOW_LARGEST = 2.0**-9
_SMALLEST_SCALE = 2.0**-100
# What is only measured is made of so many rows at a time: all at once it would be several times the product itself.
_ROWS = 4096


def quantized_linear(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Tensor | None,
    activation_scale: Tensor,
    rotated: bool,
    route: Tensor,
    ran: Tensor,
    seen: Tensor,
) -> Tensor:
    """x weightᵀ + bias, the activations in the format that `route` tells. For inference: no gradient is defined.

    Args:
        x: (..., channels) in float16, bfloat16, float32 or float64.
        weight: what `quantize_int8` or `quantize_nvfp4` gave for the weight (outputs, channels): two or three tensors.
        bias: (outputs,) in a floating dtype.
        activation_scale: one float32, a power of two: the tensor scale of NVFP4 activations, on any device.
        rotated: the weight is one that was multiplied by H / 128 of `rotation` before; activations are then multiplied
            by H.
        route: int64 (3,) on the CPU: the format's place in `ACTIVATIONS`; 1 to look for outliers, 2 for the largest
            magnitude as well, 0 for neither; and the place of a format whose error is to be measured, or -1.
        ran: int64 (formats,) on the CPU; that of the format grows by one.
        seen: float32 (7,), on the device of x so that nobody waits for it; holds the largest scales so far that
            activations got in INT8 and in NVFP4 (NaN once one was not finite; 448 for NVFP4 where magnitudes may have
            been cut); where it was looked for, max|x| / mean|x|; where it was measured, |y' - y| / |y| with y the
            product of plain activations and y' that of activations in the format; and, where it was looked for, the
            largest magnitude so far, of rotated activations where they are rotated. NVFP4 is then measured with the
            scale that fits this magnitude. Behind them stand mean|x| and |y|, by which the ratio and the error of parts
            of the activations are those of all together.

    Returns:
        (..., outputs) in the dtype of x. Where activations are not finite, neither are their rows of the result; with
        NVFP4 their groups.

    Raises:
        ValueError: shapes or devices do not fit, the route is none, or the weight has no product with it.
        TypeError: a dtype is not the one above.
    """
    checks.require_floats("quantized_linear", x=x)
    codes, scales, tensor_scale = (*weight, None)[:3]
    return _quantized_linear(x, codes, scales, tensor_scale, bias, activation_scale, rotated, route, ran, seen)


def stored_weight(weight: Sequence[Tensor], rotated: bool, dtype: torch.dtype) -> Tensor:
    """The numbers (outputs, channels) that a stored weight stands for, turned back where it is rotated."""
    held = torch.float32 if rotated else dtype
    if len(weight) == 3:
        numbers = dequantize_nvfp4(weight[0], weight[1], weight[2], held)
    else:
        numbers = (weight[0].float() * weight[1][:, None]).to(held)
    # W H / 128 times H is W.
    return rotate(numbers, dtype=dtype) if rotated else numbers


def fitting_scale(largest: Tensor) -> Tensor:
    """The tensor scale for NVFP4 activations up to a magnitude, a float32 above 0: the smallest power of two that
    leaves room for 2.6 times it. Scaling by one is exact, so a smaller one only cuts sooner, and a larger one only
    makes more of the small groups coarse. Infinite where the magnitude is not finite."""
    power = (largest.view(torch.int32) & _EXPONENT).view(torch.float32)
    return (power * _BELOW_LARGEST).clamp(min=_SMALLEST_SCALE)


def emulation(activation: Activation, weight: str, device: torch.device) -> str | None:
    """In which way a product takes longer on a device than its format lets one expect, or None where it is native."""
    arch, where = _architecture(device)
    if activation == "nvfp4" and arch not in NATIVE:
        return f"NVFP4 activations are emulated on {where}: rounded, decoded and then multiplied"
    if activation == "plain":
        return f"{weight.upper()} weights are decoded in each product on {where}: that saves memory and no time"
    return _without_integers(arch, where, device) if activation == "int8" else None


def _architecture(device: torch.device) -> tuple[int, str]:
    """NVIDIA's compute capability times ten, 0 for all others, and what to call the device's kind."""
    if device.type != "cuda":
        return 0, device.type
    if torch.version.hip is not None:
        # AMD's are "cuda" too, with numbers that look like compute capabilities: gfx1200 says (12, 0).
        return 0, torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor, f"sm_{10 * major + minor}"


def _without_integers(arch: int, where: str, device: torch.device) -> str | None:
    if made_for(device) == "reference":
        return f"INT8 has no fast form on {where}: its products are made in float64"
    if device.type == "cpu" and not has_integer_product():
        return "INT8 has no fast instructions on this CPU: its products are made of float32 ones"
    if arch in _WITHOUT_INT8:
        return f"INT8 has no fast instructions on {where}"
    if arch == 100:
        version = importlib.import_module("triton").__version__
        if tuple(int(part) for part in version.split(".")[:2]) < _INT8_ON_100:
            first = ".".join(map(str, _INT8_ON_100))
            return f"INT8 has no fast instructions on {where} with Triton {version}: it has with {first}"
    return None


def multiply(
    activation: Activation,
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Tensor | None,
    activation_scale: Tensor,
    rotated: bool,
    seen: Tensor,
) -> Tensor:
    """The product of a matrix (rows, channels) with a stored weight, in the dtype of x."""
    if rotated:
        require_rotatable("quantized_linear", x)
    if activation == "int8":
        integers, scales = quantize_int8(x, rotate=rotated)
        _raise_to(seen, 0, scales)
        stored = nvfp4_to_int8(weight[0], weight[1], weight[2]) if len(weight) == 3 else weight
        return int8_linear(integers, scales, stored[0], stored[1], bias, x.dtype)
    if activation == "plain" and len(weight) == 3:
        if not rotated:
            return nvfp4_weight_linear(x, weight[0], weight[1], weight[2], bias)
        return nvfp4_weight_linear(rotate(x, 1 / _ROTATED, x.dtype), weight[0], weight[1], weight[2] * _ROTATED, bias)
    if activation == "plain":
        return F.linear(x, stored_weight(weight, rotated, x.dtype), None if bias is None else bias.to(x.dtype))
    if len(weight) != 3:
        raise ValueError("quantized_linear has no product of NVFP4 activations with an INT8 weight: use int8 or plain")
    # Where a model is spread over several devices, it may be on another.
    scale = activation_scale.to(x.device)
    result, largest = rounding_nvfp4_linear(x, scale, weight[0], weight[1], weight[2], bias, rotate=rotated)
    _raise_to(seen, 1, largest)
    return result


def _raise_to(seen: Tensor, place: int, numbers: Tensor) -> None:
    if numbers.numel():
        # A maximum with a NaN is NaN, and stays so.
        seen[place] = torch.maximum(seen[place], numbers.amax().to(seen.device))


def _look(looks: int, rows: Tensor, rotated: bool, seen: Tensor) -> None:
    """Writes down the magnitudes of activations, of which there are some."""
    largest = torch.linalg.vector_norm(rows, torch.inf).float()
    wide = torch.promote_types(rows.dtype, torch.float32)
    mean = torch.linalg.vector_norm(rows, 1, dtype=wide) / rows.numel()
    seen[2], seen[5] = largest / mean, mean
    if looks < 2:
        return
    if not rotated:
        _raise_to(seen, 4, largest)
        return
    for piece in rows.split(_ROWS):
        _raise_to(seen, 4, torch.linalg.vector_norm(rotate(piece, dtype=torch.float32), torch.inf))


def _measure(
    activation: Activation, rows: Tensor, weight: Sequence[Tensor], scale: Tensor, rotated: bool, seen: Tensor
) -> None:
    """Writes down the error of activations in a format beside those that stay as they are."""
    unseen = torch.zeros_like(seen)
    norms = []
    for piece in rows.split(_ROWS):
        exact, rounded = (
            multiply(each, piece, weight, None, scale, rotated, unseen).float() for each in ("plain", activation)
        )
        norms.append(torch.stack([exact.norm(), (rounded - exact).norm()]))
    norm, off = torch.stack(norms).norm(dim=0)
    seen[3], seen[6] = off / norm, norm


@torch.library.custom_op("accel::quantized_linear", mutates_args=("ran", "seen"))
@without_autocast
def _quantized_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor | None,
    bias: Tensor | None,
    activation_scale: Tensor,
    rotated: bool,
    route: Tensor,
    ran: Tensor,
    seen: Tensor,
) -> Tensor:
    chosen, looks, measured = route.tolist()
    if not 0 <= chosen < len(ACTIVATIONS):
        raise ValueError(f"quantized_linear has the routes 0 to {len(ACTIVATIONS) - 1}, not {chosen}")
    rows = x.reshape(-1, x.shape[-1])
    if looks and rows.numel():
        _look(looks, rows, rotated, seen)
    weight = (codes, scales) if tensor_scale is None else (codes, scales, tensor_scale)
    if measured >= 0:
        scale = fitting_scale(seen[4].to(x.device)) if looks > 1 else activation_scale
        _measure(ACTIVATIONS[measured], rows, weight, scale, rotated, seen)
    result = multiply(ACTIVATIONS[chosen], rows, weight, bias, activation_scale, rotated, seen)
    ran[chosen] += 1
    return result.view(*x.shape[:-1], codes.shape[0])


@_quantized_linear.register_fake
def _(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor | None,
    bias: Tensor | None,
    activation_scale: Tensor,
    rotated: bool,
    route: Tensor,
    ran: Tensor,
    seen: Tensor,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]))
