"""The quantizer that diffusers loads: weights stored one by one as they are read, or read as they were stored."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import set_module_tensor_to_device
from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.utils import logging
from torch import nn

from accel.errors import AccelError
from accel.integrations.config import Quantizer, StoredWeightsConfig
from accel.integrations.plan import Plan, plan_layers
from accel.integrations.sparing import Spared
from accel.methods.layer_choice import FLOATS
from accel.methods.quantized_linear import hold, store
from accel.methods.stored_linear import StoredLinear, decode, expect
from accel.runtime.hooks import hook_of

_WEIGHT = ".weight"


class StoredWeightsQuantizer(DiffusersQuantizer):
    """One model while it loads, and what diffusers asks of it later."""

    quantization_config: StoredWeightsConfig
    # As without a quantizer: the modules that a model names for it stay in float32.
    use_keep_in_fp32_modules = True

    def __init__(self, quantization_config: StoredWeightsConfig, **kwargs: Any) -> None:
        # One configuration may be given for several models, and gets the layers of each.
        super().__init__(copy.deepcopy(quantization_config), **kwargs)
        self._plan: dict[str, Plan] = {}
        self._spared = Spared(0, "int8")
        self._bar: Any = None

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True

    @property
    def supports_parallel_loading(self) -> bool:
        # Several files at once would hold several weights at once.
        return False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        places = kwargs.get("device_map")
        if isinstance(places, dict) and "disk" in map(str, places.values()):
            raise AccelError("stored weights are not offloaded to the disk while they load: choose another device_map")

    def check_if_quantized_param(
        self, model: Any, param_value: torch.Tensor, param_name: str, state_dict: Any, **kwargs: Any
    ) -> bool:
        return not self.pre_quantized

    def create_quantized_param(self, *args: Any, **kwargs: Any) -> Any:
        """Stores a weight, or takes in what stays as it is; diffusers gives the model, the numbers, name and device."""
        model, weight, name, device = args[:4]
        path = name.removesuffix(_WEIGHT)
        planned = self._plan.get(path) if name.endswith(_WEIGHT) else None
        if planned is None:
            # A view would keep its whole file in memory.
            set_module_tensor_to_device(model, name, device, value=weight.clone(), dtype=weight.dtype)
            return
        if weight.dtype not in FLOATS:
            dtype = str(weight.dtype).removeprefix("torch.")
            raise AccelError(f"the weight of {path} is in {dtype} already: load the original model")
        stored = store(weight.to(device), planned.weight_format, planned.rotated)
        if not stored[-1].isfinite().all():
            raise AccelError(f"the weight of {path} has values that are not finite")
        linear = model.get_submodule(path)
        held = hold(linear, StoredLinear, planned.weight_format, stored, rotated=planned.rotated, saved=True)
        held.weight_dtype = weight.dtype
        if planned.spareable:
            self._spared.see(path, list(self._plan).index(path), weight.to(device), held)
        self._bar.update()

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        gone = next((path for path in self.quantization_config.stored() if f"{path}.codes" not in state_dict), None)
        if gone is not None:
            raise AccelError(f"{gone} is no stored linear now: take off the adapter around it and save then")
        return state_dict, {}

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if self.pre_quantized:
            self._plan = {path: Plan(*kind) for path, kind in self.quantization_config.stored().items()}
            if not self._plan:
                raise AccelError("the model's config.json names no stored linears: download or save it again")
            for path, planned in self._plan.items():
                expect(_linear(model, path), planned.weight_format, rotated=planned.rotated)
            return
        config = self.quantization_config
        self._plan = plan_layers(config, model)
        number = round(config.static_share * sum(planned.spareable for planned in self._plan.values()))
        self._spared = Spared(number, config.static_format)
        formats = " and ".join(sorted({planned.weight_format.upper() for planned in self._plan.values()}))
        self._bar = logging.tqdm(total=len(self._plan), desc=f"Storing weights in {formats}", unit="linear")

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        for path in self._plan:
            module = model.get_submodule(path)
            if not isinstance(module, StoredLinear):
                raise AccelError(f"{type(model).__name__} was loaded without a stored weight of {path}")
            if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
                raise AccelError(f"the folder has no stored weight of {path}: download or save it again")
        for path in self._spared.settle(model):
            if isinstance(model.get_submodule(path), StoredLinear):
                self._plan[path] = replace(self._plan[path], weight_format="int8")
            else:
                del self._plan[path]
        self.quantization_config.keep({path: (each.weight_format, each.rotated) for path, each in self._plan.items()})
        model.register_to_config(quantization_config=self.quantization_config)

    def _dequantize(self, model: Any) -> Any:
        if hook_of(model) is not None:
            raise AccelError("the model is accelerated: call accel.disable(pipe) first")
        for module in list(model.modules()):
            if isinstance(module, StoredLinear):
                decode(module)
        config = {name: value for name, value in model.config.items() if name != "quantization_config"}
        model._internal_dict = FrozenDict(config)
        return model


def register() -> None:
    """Adds the quantizer to those that diffusers knows; doing it again changes nothing."""
    auto.AUTO_QUANTIZER_MAPPING.setdefault(Quantizer.ACCEL.value, StoredWeightsQuantizer)
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(Quantizer.ACCEL.value, StoredWeightsConfig)


def _linear(model: nn.Module, path: str) -> nn.Linear:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if type(module) is not nn.Linear:
        raise AccelError(f"{type(model).__name__} has no linear {path}, of which a stored weight was saved")
    return module
