"""Whether weights are held in a way in which a stored one can be made of them, and they can come back."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from accel.errors import AccelError
from accel.methods.layer_choice import FLOATS, Layer
from accel.pipelines.offloading import groups, whose_forward
from accel.pipelines.sites import Denoiser


def require_convertible(method: str, layers: list[Layer], denoisers: Iterable[Denoiser]) -> None:
    """Raises `AccelError` where conversion of these layers of the denoisers would break something, or be broken."""
    denoisers = list(denoisers)
    for denoiser in denoisers:
        _require_weights_here(method, denoiser)
    for layer in layers:
        _require_convertible(method, layer)
    _require_unshared(method, layers, denoisers)


def _require_convertible(method: str, layer: Layer) -> None:
    """Raises `AccelError` where a layer is held in a way that conversion would break or be broken by."""
    module = layer.module
    weight = module._parameters.get("weight")
    if type(weight) is not nn.Parameter:
        kind = "made of others" if weight is None else f"a {type(weight).__name__}"
        raise AccelError(
            f"{method}: the weight of {layer.name} is {kind}, of which no stored one can be made: name it in "
            "modules_to_not_convert, or load the original model"
        )
    if weight.is_meta:
        raise AccelError(f"{method}: the weight of {layer.name} is offloaded: call accel.enable first and offload then")
    whose = whose_forward(module)
    if whose is not None:
        raise AccelError(
            f"{method}: {layer.name} has a forward {whose}: call accel.enable first and attach that then, or name the "
            "layer in modules_to_not_convert"
        )
    if weight.dtype not in FLOATS:
        dtype = str(weight.dtype).removeprefix("torch.")
        raise AccelError(f"{method}: the weight of {layer.name} is in {dtype} already: load the model in bfloat16")


def _require_weights_here(method: str, denoiser: Denoiser) -> None:
    """Raises `AccelError` where diffusers offloads groups of blocks in a way that has the weights elsewhere, as on the
    disk, where what a parameter has meanwhile is no weight, or that holds on to the parameters that are there now."""
    for group in groups(denoiser.module):
        for setting, how in (("offload_to_disk_path", "on the disk"), ("stream", "with a stream")):
            if getattr(group, setting) is not None:
                raise AccelError(
                    f"{method}: pipe.{denoiser.name} is offloaded in groups {how}, which holds on to the weights: "
                    "call accel.enable first and offload then"
                )


def _require_unshared(method: str, layers: Iterable[Layer], denoisers: Iterable[Denoiser]) -> None:
    """Raises `AccelError` where the weight of a layer is that of another module too, which would lose it."""
    users: dict[int, dict[int, str]] = {}
    for denoiser in denoisers:
        for path, module in denoiser.module.named_modules(remove_duplicate=False):
            for weight in module._parameters.values():
                users.setdefault(id(weight), {})[id(module)] = f"{denoiser.name}.{path}"
    taken: dict[int, str] = {}
    for layer in layers:
        those = users[id(layer.module._parameters["weight"])]
        other = next((name for module, name in those.items() if module != id(layer.module)), None)
        other = taken.get(id(layer.module), other)
        if other is not None:
            raise AccelError(
                f"{method}: {layer.name} and {other} share one weight, of which no stored one can be made: name both "
                "in modules_to_not_convert"
            )
        taken[id(layer.module)] = layer.name
