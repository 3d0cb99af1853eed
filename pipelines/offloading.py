"""What offloads the weights of a model holds on to: accelerate's hook of a single layer, diffusers' groups of layers.

Both note the tensors, or their names, that a layer has when they are attached. Where a layer gets another weight later,
they have to hear of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from safetensors.torch import load_file
from torch import nn

# A `forward` that no library is known to have put into its place.
BY_HAND = "put there by hand"


def whose_forward(module: nn.Module) -> str | None:
    """What took the place of the module's own `forward`, in words, or None where nothing did.

    Hooks that were taken off leave the module's own one behind, as an attribute of the instance. What Accel itself has
    put around one, to measure it, takes no place.
    """
    forward: Any = vars(module).get("forward")
    while _is_ours(forward):
        forward = forward.__wrapped__
    if forward is None or getattr(forward, "__func__", None) is type(module).forward:
        return None
    registry = getattr(module, "_diffusers_hook", None)
    names = [name.split("---")[0] for name in getattr(registry, "hooks", {})]
    if any(name.startswith("cp_") for name in names):
        return "of context parallelism"
    if not names and not hasattr(module, "_hf_hook"):
        return BY_HAND
    return "of offloading or casting of single layers"


def _is_ours(forward: Any) -> bool:
    home = getattr(forward, "__globals__", {}).get("__name__", "")
    return hasattr(forward, "__wrapped__") and home.partition(".")[0] == __name__.partition(".")[0]


def groups(module: nn.Module) -> list[Any]:
    """The groups in which diffusers offloads parts of a module."""
    registries = (getattr(part, "_diffusers_hook", None) for part in module.modules())
    found = (registry.get_hook("group_offloading") for registry in registries if registry is not None)
    return list({id(hook.group): hook.group for hook in found if hook is not None}.values())


def regroup(module: nn.Module) -> None:
    """Has groups that hold on to the tensors of a module hold on to those that it has now.

    Those with a stream keep a copy of each tensor, and those on the disk a file. Others ask the module each time.
    """
    holding = [group for group in groups(module) if group.stream is not None or group.offload_to_disk_path is not None]
    for group in holding:
        if group.offload_to_disk_path is not None:
            _read_back(group)
    if holding:
        _maybe_remove_and_reapply_group_offloading(module)


def _read_back(group: Any) -> None:
    """Has a group's tensors in memory again, and forgets its file."""
    file = Path(group.safetensors_file_path)
    if file.exists():
        numbers = load_file(file, device="cpu")
        for name, tensor in group.key_to_tensor.items():
            tensor.data = numbers[name]
        file.unlink()


@contextmanager
def told_of_weights(layer: nn.Module) -> Iterator[None]:
    """Has accelerate's hook of a layer, if there is one, notice the weights that the layer gets meanwhile."""
    hook = vars(layer).get("_hf_hook")
    if hook is None:
        yield
        return
    hook.detach_hook(layer)
    try:
        yield
    finally:
        for each in getattr(hook, "hooks", (hook,)):
            weights = getattr(each, "weights_map", None)
            if weights is not None and any(name not in weights for name in layer._parameters):
                # One that it made itself, of what the layer had.
                each.weights_map = None
        hook.init_hook(layer)
