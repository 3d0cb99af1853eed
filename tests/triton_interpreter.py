"""Repairs of Triton's interpreter (3.6 to 3.9), without which bf16 and fp8 give wrong numbers there.

The interpreter keeps bf16 and fp8 as raw bits in unsigned integers. In the released versions it multiplies and
adds those bits as integers, truncates instead of rounding when it casts to bf16, and rounds fp8 away from
zero without carrying into the exponent. Each repair below widens to float32, lets numpy compute, and rounds
as the hardware does. A kernel that needs another operation repaired adds a function to `REPAIRS`.
"""

import os
from collections.abc import Callable

import numpy as np
import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter

# How torch names the formats that numpy lacks, and the largest finite value where a cast saturates.
_FORMATS = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
_SATURATES = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}
_BITS = {1: (torch.uint8, np.uint8), 2: (torch.int16, np.int16)}

Builder = type[interpreter.InterpreterBuilder]


def install() -> None:
    """Repair the interpreter of this process, once; TRITON_INTERPRET=1 must have been set when it started."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("the interpreter is off: set TRITON_INTERPRET=1 before the process starts")
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "repaired", False):
        return
    for repair in REPAIRS:
        repair(builder)
    builder.repaired = True


def widen(data: np.ndarray, dtype: tl.dtype) -> np.ndarray:
    """The values of `data`, which the interpreter holds as `dtype`, in float32."""
    if dtype not in _FORMATS:
        return data.astype(np.float32)
    bits, numpy_bits = _BITS[data.itemsize]
    raw = torch.from_numpy(np.array(data, order="C").view(numpy_bits)).view(bits)
    return raw.view(_FORMATS[dtype]).float().numpy()


def narrow(values: np.ndarray, dtype: tl.dtype) -> np.ndarray:
    """`values` rounded to nearest even into `dtype`, as held there; fp8 saturates as on a GPU."""
    if dtype not in _FORMATS:
        return values.astype(interpreter._get_np_dtype(dtype))
    rounded = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    if dtype in _SATURATES:
        rounded = rounded.clamp(-_SATURATES[dtype], _SATURATES[dtype])
    held_as = interpreter._get_np_dtype(dtype)
    return rounded.to(_FORMATS[dtype]).view(_BITS[held_as.itemsize][0]).numpy().view(held_as)


def _handle(data: np.ndarray, dtype: tl.dtype) -> interpreter.TensorHandle:
    return interpreter.TensorHandle(data, dtype)


def repair_casts(builder: Builder) -> None:
    plain_cast, float_cast = builder.cast_impl, builder.create_fp_to_fp

    def cast_impl(self, source, target):
        held, wanted = source.dtype.scalar, target.scalar
        if held != wanted and tl.bfloat16 in (held, wanted):
            return _handle(narrow(widen(source.data, held), wanted), wanted)
        return plain_cast(self, source, target)

    def create_fp_to_fp(self, source, target, rounding):
        held, wanted = source.dtype.scalar, target.scalar
        nearest = rounding in (None, ir.ROUNDING_MODE.RTNE)
        if nearest and (held in _FORMATS or wanted in _FORMATS):
            return _handle(narrow(widen(source.data, held), wanted), wanted)
        return float_cast(self, source, target, rounding)

    builder.cast_impl, builder.create_fp_to_fp = cast_impl, create_fp_to_fp


def repair_bf16_arithmetic(builder: Builder) -> None:
    plain_unary, plain_binary = builder.unary_op, builder.binary_op

    def unary_op(self, argument, operation):
        dtype = argument.dtype.scalar
        if dtype != tl.bfloat16:
            return plain_unary(self, argument, operation)
        return _handle(narrow(operation(widen(argument.data, dtype)), dtype), dtype)

    def binary_op(self, left, right, operation):
        dtype = left.dtype.scalar
        if dtype != tl.bfloat16 or right.dtype.scalar != tl.bfloat16:
            return plain_binary(self, left, right, operation)
        result = operation(widen(left.data, dtype), widen(right.data, dtype))
        return _handle(result, tl.int1) if result.dtype == np.bool_ else _handle(narrow(result, dtype), dtype)

    builder.unary_op, builder.binary_op = unary_op, binary_op


def repair_dot(builder: Builder) -> None:
    plain_dot = builder.create_dot

    def create_dot(self, left, right, accumulator, precision, imprecise):
        types = left.dtype.scalar, right.dtype.scalar
        if not any(dtype in _FORMATS for dtype in types):
            return plain_dot(self, left, right, accumulator, precision, imprecise)
        product = np.matmul(widen(left.data, types[0]), widen(right.data, types[1]))
        return _handle(product.astype(accumulator.data.dtype) + accumulator.data, accumulator.dtype.scalar)

    builder.create_dot = create_dot


def repair_dot_scaled(builder: Builder) -> None:
    """It is not there in Triton 3.6 and 3.7, and 3.9 takes the scales of NVFP4 for powers of two."""
    interpreter.interpreter_semantic.dot_scaled = _dot_scaled


def _dot_scaled(left, left_scale, left_format, right, right_scale, right_format, sums, *unused):
    if (left_format, right_format) != ("e2m1", "e2m1"):
        raise NotImplementedError(f"dot_scaled of {left_format} and {right_format} is not repaired")
    product = np.matmul(_nvfp4(left, left_scale), _nvfp4(right.T, right_scale).T)
    return tl.tensor(_handle(product + sums.handle.data, tl.float32), sums.type)


def _nvfp4(codes: tl.tensor, scales: tl.tensor) -> np.ndarray:
    """The numbers (rows, channels) of packed codes and E4M3 scales, each scale for 16 of a row."""
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    numbers = np.concatenate([magnitudes, -magnitudes])
    bytes_ = codes.handle.data
    each = np.stack([numbers[bytes_ & 15], numbers[bytes_ >> 4]], axis=-1).reshape(len(bytes_), -1)
    return each * widen(scales.handle.data, tl.float8e4nv).repeat(16, axis=1)


def repair_loop_bounds(builder: Builder) -> None:
    """numpy 2.4 no longer turns an array of one element into an int, as Triton 3.6 expects for `range(n)`."""
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch


REPAIRS: tuple[Callable[[Builder], None], ...] = (
    repair_casts,
    repair_bf16_arithmetic,
    repair_dot,
    repair_dot_scaled,
    repair_loop_bounds,
)
