"""What single operations have to do at least, from the shapes and formats that torch's profiler records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# As the profiler names them.
_BYTES = {
    "double": 8,
    "float": 4,
    "c10::BFloat16": 2,
    "c10::Half": 2,
    "c10::Float8_e4m3fn": 1,
    "signed char": 1,
    "unsigned char": 1,
    "bool": 1,
    "int": 4,
    "long": 8,
    "long int": 8,
}


@dataclass(frozen=True)
class Cost:
    """Floating-point operations, and bytes of tensors read and written; None where the calls do not tell."""

    flops: float | None
    moved: float | None

    def __add__(self, other: Cost) -> Cost:
        return Cost(_sum(self.flops, other.flops), _sum(self.moved, other.moved))


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    itemsize: int | None

    def bytes_of(self, count: int) -> float | None:
        """Of so many numbers in this format."""
        return None if self.itemsize is None else float(self.itemsize * count)

    @property
    def nbytes(self) -> float | None:
        return self.bytes_of(math.prod(self.shape))


# The arguments of a call in their order; what is no tensor is None.
_Arguments = Sequence[_Tensor | None]


def costs(events: Iterable[Any]) -> dict[str, Cost]:
    """By operation, what all its calls have to do.

    Counted are torch's products of matrices and its attentions, and of Accel's operations the linears, the dense
    attention and what caches do with deltas. What block-sparse attention has to do hangs on the blocks that are kept,
    which no shape tells; a linear whose arguments do not tell the format of its result has no bytes.

    Args:
        events: of `torch.profiler.profile(record_shapes=True)` those of its `kineto_results`.
    """
    found: dict[str, Cost] = {}
    for event in events:
        name = event.name()
        if name in _COUNTS:
            arguments = [_tensor(*one) for one in zip(event.shapes(), event.dtypes(), strict=True)]
            cost = _COUNTS[name](arguments)
            found[name] = found[name] + cost if name in found else cost
    return found


def _tensor(shape: Sequence[int], dtype: str) -> _Tensor | None:
    # One number has no shape, as what is no tensor.
    return _Tensor(tuple(shape), _BYTES.get(dtype)) if shape or dtype in _BYTES else None


def _sum(*parts: float | None) -> float | None:
    return None if None in parts else sum(part for part in parts if part is not None)


def _read(arguments: _Arguments) -> float | None:
    return _sum(*(one.nbytes for one in arguments if one is not None))


def _there(argument: _Tensor | None) -> _Tensor:
    if argument is None:
        raise ValueError("the profiler recorded no tensor where the operation takes one")
    return argument


def _product(first: int) -> Callable[[_Arguments], Cost]:
    """(..., m, k) times (..., k, n), the arguments from `first` on; the others are added."""

    def count(arguments: _Arguments) -> Cost:
        left, right = _there(arguments[first]), _there(arguments[first + 1])
        *batch, rows, inner = left.shape
        results = math.prod(batch) * rows * right.shape[-1]
        return Cost(2.0 * results * inner, _sum(_read(arguments), left.bytes_of(results)))

    return count


def _linear(codes: int, *, packed: bool, told: bool) -> Callable[[_Arguments], Cost]:
    """Rows (..., k), the first argument, times the stored weight (n, ...); `packed` where the rows are two in a byte.

    `told` says whether the result has the format of the rows.
    """

    def count(arguments: _Arguments) -> Cost:
        rows, outputs = _there(arguments[0]), _there(arguments[codes]).shape[0]
        inner = rows.shape[-1] * (2 if packed else 1)
        results = math.prod(rows.shape[:-1]) * outputs
        return Cost(2.0 * results * inner, _sum(_read(arguments), rows.bytes_of(results)) if told else None)

    return count


def _attention(heads: int, length: int) -> Callable[[_Arguments], Cost]:
    """Of all queries among all keys; at which places of the shape heads and length are."""

    def count(arguments: _Arguments) -> Cost:
        query, key, value = (_there(one) for one in arguments[:3])
        batch, size = query.shape[0], query.shape[-1]
        pairs = batch * query.shape[heads] * query.shape[length] * key.shape[length]
        results = batch * query.shape[heads] * query.shape[length] * value.shape[-1]
        moved = _sum(query.nbytes, key.nbytes, value.nbytes, query.bytes_of(results))
        return Cost(2.0 * pairs * (size + value.shape[-1]), moved)

    return count


def _delta(like: int, results: int) -> Callable[[_Arguments], Cost]:
    """Reads its tensors once and writes `results` like the argument at `like`; it multiplies next to nothing."""

    def count(arguments: _Arguments) -> Cost:
        return Cost(None, _sum(_read(arguments), *[_there(arguments[like]).nbytes] * results))

    return count


_COUNTS: dict[str, Callable[[_Arguments], Cost]] = {
    "aten::mm": _product(0),
    "aten::bmm": _product(0),
    "aten::addmm": _product(1),
    "aten::baddbmm": _product(1),
    **{
        f"aten::_scaled_dot_product_{form}": _attention(1, 2)
        for form in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    },
    "accel::dense_attention": _attention(2, 1),
    "accel::int8_linear": _linear(2, packed=False, told=False),
    "accel::nvfp4_linear": _linear(3, packed=True, told=False),
    "accel::nvfp4_weight_linear": _linear(1, packed=False, told=True),
    "accel::rounding_nvfp4_linear": _linear(3, packed=False, told=True),
    "accel::quantized_linear": _linear(1, packed=False, told=True),
    "accel::compute_delta": _delta(0, 1),
    "accel::update_delta": _delta(2, 2),
    "accel::apply_delta": _delta(0, 1),
}
