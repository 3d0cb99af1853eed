"""A linear that is quantized for a while, and the very same linear again.

Copies, pickles and saved models are those of the original, which is in host memory or in the files that it came from.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from accel.errors import AccelError
from accel.methods.original_weights import Original, WeightFile
from accel.methods.quantized_linear import ATTRIBUTES, BUFFERS, QuantizedLinear, hold, release
from accel.methods.weight_bytes import WeightFormat
from accel.pipelines.offloading import told_of_weights

_OWN = ("original", "parameter_names", "left_behind")


class ConvertedLinear(QuantizedLinear):
    """A linear whose weight is stored and whose original comes back; made by `convert`, undone by `revert`."""

    original: Original
    parameter_names: tuple[str, ...]
    # Of the instance, where a hook that was taken off left its own `forward` behind.
    left_behind: dict[str, Any]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        _require_kept(self, "saved")
        destination[prefix + "weight"] = self.original.numbers().to(self.weight_dtype)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[misc]
        if f"{prefix}weight" in state_dict:
            # The last argument; without a line there, a load that is not strict would pass the weight over.
            errors = kwargs["error_msgs"] if "error_msgs" in kwargs else args[-1]
            errors.append(f"the weight {prefix}weight is stored quantized: call accel.disable(pipe) and load it then")

    def __reduce_ex__(self, protocol: Any) -> Any:
        _require_kept(self, "copied")
        state = {name: value for name, value in self.__getstate__().items() if name not in (*ATTRIBUTES, *_OWN)}  # type: ignore[operator]
        parameters = dict(state["_parameters"])
        weight = self.original.numbers().to(self.codes.device, self.weight_dtype)
        parameters["weight"] = nn.Parameter(weight, requires_grad=self.original.requires_grad)
        state["_parameters"] = {name: parameters[name] for name in self.parameter_names}
        state["_buffers"] = {name: value for name, value in state["_buffers"].items() if name not in BUFFERS}
        state["_non_persistent_buffers_set"] = state["_non_persistent_buffers_set"] - set(BUFFERS)
        return _plain, (), state


def convert(
    linear: nn.Linear,
    weight_format: WeightFormat,
    stored: tuple[Tensor, ...],
    *,
    rotated: bool,
    file: WeightFile | None = None,
) -> ConvertedLinear:
    """Makes the linear a quantized one with a weight that `store` made of its own.

    The original goes to host memory, or is dropped where a file has it.
    """
    weight, names = linear._parameters["weight"], tuple(linear._parameters)
    assert weight is not None
    device, dtype = weight.device, weight.dtype
    # It may fail for want of memory, and leaves the linear as it was then.
    original = Original(weight, file)
    try:
        converted = hold(linear, ConvertedLinear, weight_format, stored, rotated=rotated, saved=False)
    except BaseException:
        original.give_back(device, dtype)
        raise
    converted.parameter_names, converted.original = names, original
    attributes = vars(converted)
    converted.left_behind = {name: attributes.pop(name) for name in ("forward",) if name in attributes}
    return converted


def revert(converted: ConvertedLinear) -> None:
    """Makes it the linear that it was, on the device where it is now; raises `AccelError` where its file is gone."""
    with told_of_weights(converted):
        weight = converted.original.give_back(converted.codes.device, converted.weight_dtype)
        order, left_behind = converted.parameter_names, converted.left_behind
        for name in _OWN:
            delattr(converted, name)
        release(converted, weight, order)
        for name, value in left_behind.items():
            vars(converted).setdefault(name, value)


def _plain() -> nn.Linear:
    return nn.Linear.__new__(nn.Linear)


def _require_kept(linear: ConvertedLinear, done: str) -> None:
    if not linear.original.kept:
        raise AccelError(
            f"a model whose original weights were dropped with keep_original=False cannot be {done}: "
            "call accel.disable(pipe) first"
        )
