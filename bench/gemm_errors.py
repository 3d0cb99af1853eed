"""How far the products of quantized linears are off, on the inputs that they get in a plain run of the built-in model.

For every layer, step and guidance branch the float32 product is compared with those of stored weights, |y' - y| / |y|;
W4A4 is an NVFP4 weight with NVFP4 activations, A8 are INT8 activations, W8 an INT8 weight, A16 activations as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.kernels.quantized_linear import SEEN, Activation, multiply
from accel.kernels.rotation import BLOCK
from accel.methods.layer_choice import Layer, choose_layers
from accel.methods.quantized_linear import ROTATED_SCALE, SCALE, store
from accel.methods.weight_bytes import WeightFormat
from accel.pipelines.sites import BlockSite, PipelineFacts, inspect_pipeline

PRODUCTS: dict[str, tuple[WeightFormat, Activation]] = {
    "W4A4": ("nvfp4", "nvfp4"),
    "W4A8": ("nvfp4", "int8"),
    "W4A16": ("nvfp4", "plain"),
    "W8A8": ("int8", "int8"),
}
# What the activations alone do, which is what mixed precision measures: W4A4 against W4A16.
ACTIVATIONS = "A4"


@dataclass(frozen=True)
class Errors:
    """Of one run: by product the errors (steps, layers), and the changes of the blocks (steps, blocks).

    Errors are means over the guidance branches; changes are |Y - X| / |X| of the branch that comes first.
    """

    errors: dict[str, Tensor]
    changes: Tensor

    def save(self, path: Path) -> None:
        """Writes the file, or none."""
        part = path.with_name(f"{path.stem}.part.npz")
        np.savez(part, changes=self.changes.numpy(), **{name: found.numpy() for name, found in self.errors.items()})
        part.rename(path)

    @classmethod
    def load(cls, path: Path) -> Errors:
        """Reads what `save` wrote."""
        with np.load(path) as found:
            tensors = {name: torch.from_numpy(found[name]) for name in found.files}
        return cls(changes=tensors.pop("changes"), errors=tensors)


def layers_of(facts: PipelineFacts) -> list[Layer]:
    """The linears that mixed precision chooses a format for, with its defaults."""
    (denoiser,) = facts.denoisers
    family = facts.family
    left, modulation = family.modules_to_not_convert, family.modulation
    found, _ = choose_layers(denoiser, left=left, modulation=modulation, take_modulation=False, taken=())
    return found


def measure(pipe: Any, steps: int, run: Callable[[], Any]) -> Errors:
    """Makes the run, a plain one, and compares all products beside it."""
    facts = inspect_pipeline(pipe)
    (denoiser,) = facts.denoisers
    watch = _Watch(steps)
    with ExitStack() as stack:

        def hook(handle: Any) -> None:
            stack.callback(handle.remove)

        hook(denoiser.module.register_forward_pre_hook(watch.call))
        for site in denoiser.blocks:
            hook(site.module.register_forward_hook(partial(watch.block, site), with_kwargs=True))
        for layer in layers_of(facts):
            hook(layer.module.register_forward_hook(partial(watch.linear, _Stored(layer.module))))
        run()
    return watch.errors()


class _Stored:
    """The weights of one linear in both formats, rotated where they can be, as mixed precision stores them."""

    def __init__(self, linear: nn.Linear) -> None:
        self.rotated = linear.in_features % BLOCK == 0
        formats: tuple[WeightFormat, ...] = ("nvfp4", "int8")
        self.weights = {each: store(linear.weight.detach(), each, self.rotated) for each in formats}

    def product(self, name: str, x: Tensor) -> Tensor:
        weight, activation = PRODUCTS[name]
        scale = torch.tensor(ROTATED_SCALE if self.rotated else SCALE)
        return multiply(activation, x, self.weights[weight], None, scale, self.rotated, torch.zeros(len(SEEN)))


class _Watch:
    """Collects what the hooks see; the calls of a step are those of its guidance branches, equally many in each."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._errors: list[dict[str, list[Tensor]]] = []
        self._changes: list[list[Tensor]] = []

    def call(self, module: nn.Module, args: Any) -> None:
        self._errors.append({name: [] for name in (*PRODUCTS, ACTIVATIONS)})
        self._changes.append([])

    def block(self, site: BlockSite, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = site.streams(args, kwargs)
        (before,), (after,) = given, site.unpack(output, given)
        self._changes[-1].append((after - before).norm() / before.norm())

    def linear(self, stored: _Stored, module: nn.Linear, args: Any, output: Tensor) -> None:
        x = args[0].reshape(-1, args[0].shape[-1])
        exact = F.linear(x, module.weight)
        products = {name: stored.product(name, x) for name in PRODUCTS}
        for name, found in products.items():
            self._errors[-1][name].append(_apart(found, exact))
        self._errors[-1][ACTIVATIONS].append(_apart(products["W4A4"], products["W4A16"]))

    def errors(self) -> Errors:
        branches, rest = divmod(len(self._errors), self._steps)
        if rest or not branches:
            raise ValueError(f"{len(self._errors)} calls are no multiple of {self._steps} steps")
        found = {
            name: torch.stack([torch.stack(call[name]) for call in self._errors]).unflatten(0, (-1, branches)).mean(1)
            for name in (*PRODUCTS, ACTIVATIONS)
        }
        return Errors(found, torch.stack([torch.stack(call) for call in self._changes[::branches]]))


def _apart(found: Tensor, exact: Tensor) -> Tensor:
    return (found - exact).norm() / exact.norm()
