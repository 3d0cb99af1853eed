"""A tensor that can be read and not written: what is written to a copy that was made anew would be lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from accel.errors import AccelError

_WRITES = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__")
_DATA = (Tensor.data.__get__, Tensor.data.__set__)  # type: ignore[attr-defined]


class ReadOnly(Tensor):
    """Numbers that a module decodes on demand; what is computed from them is a plain tensor.

    Fusing a LoRA adds to the weight in place, here to numbers that nobody keeps: it is refused instead.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name in _WRITES or (name.endswith("_") and not name.endswith("__") and name != "requires_grad_")
        if args and isinstance(args[0], cls) and (in_place or func == _DATA[1]):
            raise AccelError(
                "this weight is stored quantized and cannot be changed: load the model in bfloat16 for that, "
                "or keep an adapter loaded without fusing it"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return result.as_subclass(cls) if func == _DATA[0] else result
