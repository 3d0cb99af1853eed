"""What the quantizations share: settings, installation, and the record of the formats that ran.

Each linear of the transformer gets a weight that is stored once, in INT8 or NVFP4; a method says in which format the
activations are, for each layer and call. What ran is counted inside the operation itself and collected after each call
of the denoiser.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import torch

from accel.errors import AccelError, AccelWarning
from accel.kernels.quantized_linear import ACTIVATIONS, SEEN, Activation, emulation
from accel.kernels.rotation import BLOCK
from accel.methods.activation_scales import range_of
from accel.methods.as_stored import require_as_stored
from accel.methods.base import Context, Method
from accel.methods.converted_linear import convert, revert
from accel.methods.convertible import require_convertible
from accel.methods.layer_choice import Layer, check_names, choose_layers
from accel.methods.needs import Slot
from accel.methods.original_weights import WeightFile, require_same, weight_files
from accel.methods.quantization_settings import QuantizationConfig as QuantizationConfig
from accel.methods.quantized_linear import ROTATED_SCALE, SCALE, QuantizedLinear, store
from accel.methods.quantized_report import QuantizedWeights, describe, report
from accel.methods.stored_linear import StoredLinear, rest, stored_layers
from accel.methods.weight_bytes import WeightFormat
from accel.pipelines.sites import Denoiser
from accel.runtime.readback import Readback
from accel.runtime.recorder import RunRecord
from accel.runtime.runs import InstanceMethod

# Chosen by us from `python bench/int8_linear.py`: with one of its sides under this, a product on a CPU gains nothing.
_SMALL_ON_CPU = 512
# Of diffusers, which change weights in place or make new ones of them.
_FUSIONS = ("fuse_lora", "unfuse_lora", "fuse_qkv_projections")
_LARGEST_SCALE = 448.0
# Below, E4M3 has fewer and fewer places.
_SMALLEST_SCALE = 2.0**-6


class Quantization(Method):
    """A quantization on one pipeline; a subclass says which formats."""

    slot: ClassVar[Slot] = "linears"
    config: QuantizationConfig
    # What helps where NVFP4 does not hold a layer's activations.
    remedy: ClassVar[str] = "name them in modules_to_not_convert"

    def __init__(self, config: QuantizationConfig, context: Context) -> None:
        super().__init__(config, context)
        self.layers: dict[str, list[Layer]] = {}
        self.weights = QuantizedWeights()
        # By a layer's name, the power of two that a calibration found for its NVFP4 activations.
        self.scales: dict[str, float] = {}
        self._told = False
        self._running = False
        # What the layers of a denoiser have seen after each call, on its way to the host.
        self._seen: list[tuple[str, Readback]] = []
        self._in_nvfp4: set[str] = set()

    @abstractmethod
    def weight_format(self, layer: Layer) -> WeightFormat | None:
        """How the layer's weight is stored; None leaves the layer as it is. Asked once."""

    @abstractmethod
    def default_activation(self, layer: Layer) -> Activation:
        """The format of the layer's activations where nothing else is said for a call."""

    def rotates(self, layer: Layer) -> bool:
        """Whether activations and weight are to be rotated, where the layer's channels allow it."""
        return self.config.rotates

    def activations(self, layer: Layer) -> tuple[Activation, ...]:
        """All formats that the layer's activations may get."""
        return (self.default_activation(layer),)

    @property
    def name(self) -> str:
        return self.config.method

    def install(self) -> list[Callable[[], None]]:
        denoisers = self.context.facts.denoisers
        self._choose(denoisers)
        undo: list[Callable[[], None]] = []
        try:
            for denoiser in denoisers:
                layers = self.layers[denoiser.name]
                files = None
                if not (self.config.keep_original or _came_stored(layers)):
                    files = weight_files(self.name, denoiser)
                for layer in layers:
                    undo += self._take(layer) if _came_stored(layers) else self._convert(layer, files)
                self.layers[denoiser.name] = [each for each in layers if isinstance(each.module, QuantizedLinear)]
            for layer in self._all():
                self._module(layer).scale_activations(self.scales.get(layer.name))
            # A warning may be made an error.
            for text in self._foretell(None):
                warnings.warn(f"{self.name}: {text}", AccelWarning, stacklevel=4)
        except BaseException:
            for step in reversed(undo):
                step()
            raise
        for denoiser in denoisers:
            undo.append(self.context.hooks.add(denoiser.module, partial(self._count, denoiser), innermost=True))
            undo += [
                InstanceMethod(denoiser.module, method, partial(self._refuse_fusion, denoiser, method)).remove
                for method in _FUSIONS
                if hasattr(denoiser.module, method)
            ]
            # A fused adapter forgets that it is before it takes itself out of the weight, which it cannot now.
            undo += [
                InstanceMethod(module, "unmerge", partial(self._refuse_fusion, denoiser, "unfuse_lora")).remove
                for module in denoiser.module.modules()
                if getattr(module, "merged", False) is True and hasattr(module, "unmerge")
            ]
        return undo

    def start_run(self, num_steps: int) -> None:
        self._running, self._told = True, False
        for layer in self._all():
            self._module(layer).seen.zero_()
        self._seen.clear()
        self._in_nvfp4.clear()

    def end_run(self) -> None:
        if not self._running:
            return
        self._running = False
        for layer in self._all():
            self._module(layer).choose(self.default_activation(layer))
        self._tell_bad_activations()

    def report(self, record: RunRecord) -> dict[str, Any]:
        return report(self.name, self.weights, record, self.activation_scales())

    def activation_scales(self) -> str:
        """What NVFP4 activations are scaled by, in words."""
        fixed = f"{SCALE:g}, or {ROTATED_SCALE:g} where rotated"
        if not self.scales:
            return fixed
        others = sum("nvfp4" in self.activations(each) and each.name not in self.scales for each in self._all())
        return f"{range_of(self.scales)} as calibrated" + (f", {others} others by {fixed}" if others else "")

    def describe(self, record: RunRecord) -> str:
        return describe(self.report(record))

    def idle_reason(self, record: RunRecord) -> str | None:
        ran = sum(record.count(self.name, activation) for activation in ACTIVATIONS)
        return None if ran else "none of the quantized linears was called"

    def _all(self) -> list[Layer]:
        return [layer for layers in self.layers.values() for layer in layers]

    def _module(self, layer: Layer) -> QuantizedLinear:
        assert isinstance(layer.module, QuantizedLinear)
        return layer.module

    def _choose(self, denoisers: tuple[Denoiser, ...]) -> None:
        config, family = self.config, self.context.facts.family
        for setting in ("modules_to_not_convert", "modules_to_convert"):
            check_names(self.name, setting, getattr(config, setting), denoisers)
        for denoiser in denoisers:
            found, left = stored_layers(denoiser, family.modulation)
            if found:
                require_as_stored(config, denoiser, found, family.modulation)
                self.layers[denoiser.name] = found
                self.weights.left.update(left)
                continue
            found, left = choose_layers(
                denoiser,
                left=(*family.modules_to_not_convert, *config.modules_to_not_convert),
                modulation=family.modulation,
                take_modulation=config.quantize_modulation,
                taken=config.modules_to_convert,
            )
            self.layers[denoiser.name] = found
            self.weights.left.update(left)
        if not self._all():
            raise AccelError(f"{self.name}: {_nothing(self.weights.left)}")
        converted = {name: layers for name, layers in self.layers.items() if not _came_stored(layers)}
        require_convertible(
            self.name, list(chain.from_iterable(converted.values())), [d for d in denoisers if d.name in converted]
        )

    def _take(self, layer: Layer) -> list[Callable[[], None]]:
        """Takes a weight as it came stored; returns what gives the layer back."""
        module = layer.module
        assert isinstance(module, StoredLinear)
        module.choose(self.default_activation(layer))
        self.weights.add(module, module.weight_dtype.itemsize, unrotated=False)
        return [partial(rest, module)]

    def _convert(self, layer: Layer, files: dict[str, WeightFile] | None) -> list[Callable[[], None]]:
        """Stores the layer's weight; returns what undoes it, nothing where the layer stays as it is."""
        weight_format = "nvfp4" if layer.modulation else self.weight_format(layer)
        if weight_format is None:
            self.weights.left["among the most sensitive, left as they are"] += 1
            return []
        wanted = self.rotates(layer) and set(self.activations(layer)) != {"plain"}
        rotated = wanted and layer.module.in_features % BLOCK == 0
        weight = layer.module.weight
        stored = store(weight.detach(), weight_format, rotated)
        if not stored[-1].isfinite().all():
            raise AccelError(f"{self.name}: the weight of {layer.name} has values that are not finite")
        file = None
        if files is not None:
            file = require_same(self.name, layer.name, weight, files.get(f"{layer.path}.weight"))
        itemsize = weight.element_size()
        converted = convert(layer.module, weight_format, stored, rotated=rotated, file=file)
        converted.choose(self.default_activation(layer))
        self.weights.add(converted, itemsize, unrotated=wanted and not rotated)
        return [partial(revert, converted)]

    def _count(
        self, denoiser: Denoiser, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        modules = [(layer, self._module(layer)) for layer in self.layers[denoiser.name]]
        sample = denoiser.argument("hidden_states", args, kwargs)
        device = sample.device if isinstance(sample, torch.Tensor) else None
        for _, module in modules:
            module.ran.zero_()
            module.watch_on(device or module.seen.device)
        if self._running and not self._told:
            self._told = True
            for text in self._foretell(device):
                self.context.recorder.note(f"{self.name}: {text}")
        output = proceed(*args, **kwargs)
        moment = self.context.clock.now
        if moment is not None:
            for layer, module in modules:
                ran: list[str] = [a for a, times in zip(ACTIVATIONS, module.ran.tolist(), strict=True) if times]
                if "nvfp4" in ran:
                    self._in_nvfp4.add(layer.name)
                for what in ran or ["skipped"]:
                    self.context.recorder.event(self.name, what, moment, layer.index)
            if modules:
                seen = torch.stack([module.seen.to(modules[0][1].seen.device) for _, module in modules])
                self._seen.append((denoiser.name, Readback(seen.flatten())))
        return output

    def _refuse_fusion(self, denoiser: Denoiser, method: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        if _came_stored(self.layers[denoiser.name]):
            how = f"came stored: {method} needs the original model"
        else:
            how = f"are stored by {self.name}: call accel.disable(pipe), then {method}, then accel.enable"
        raise AccelError(
            f"{method} changes weights, and those of this model {how}; an adapter that is loaded and not fused works "
            "as it is"
        )

    def _foretell(self, device: torch.device | None) -> list[str]:
        """What the user should know of a run on a device, or before the first, where it will be is guessed: which
        products are emulated, and where time is lost."""
        texts: dict[str, None] = {}
        places = {denoiser.name: device or _place(denoiser) for denoiser in self.context.facts.denoisers}
        small = work = 0
        for layer in self._all():
            module = self._module(layer)
            if layer.modulation:
                continue
            for activation in self.activations(layer):
                found = emulation(activation, module.weight_format, places[layer.denoiser] or module.codes.device)
                if found is not None:
                    texts[found] = None
            size = module.in_features * module.out_features
            work += size
            small += size if min(module.in_features, module.out_features) < _SMALL_ON_CPU else 0
        used = {places[layer.denoiser] or self._module(layer).codes.device for layer in self._all()}
        if any(each.type == "cpu" for each in used) and not texts and 2 * small > work:
            texts[f"most of these linears have under {_SMALL_ON_CPU} channels, too few to gain time on a CPU"] = None
        return list(texts)

    def _tell_bad_activations(self) -> None:
        """Names the layers whose activations were not finite in the first call that had any, or beyond what NVFP4 holds
        with their scales."""
        largest: dict[str, float] = {}
        size = len(SEEN)
        for denoiser, back in self._seen:
            values = back.tolist()
            broken = [
                layer.name
                for place, layer in enumerate(self.layers[denoiser])
                if not all(math.isfinite(scale) for scale in values[size * place : size * place + 2])
            ]
            if broken:
                text = f"{self.name}: activations of {_first(broken)} were not finite, and so are the results"
                self.context.recorder.note(text)
                warnings.warn(text, AccelWarning, stacklevel=2)
                break
            # Each call has the largest of those before it too.
            largest |= {layer.name: values[size * n + 1] for n, layer in enumerate(self.layers[denoiser])}
        self._seen.clear()
        cut = [name for name, scale in largest.items() if scale >= _LARGEST_SCALE]
        lost = [name for name in largest if name in self._in_nvfp4 and largest[name] < _SMALLEST_SCALE]
        for names, what in ((cut, "too large for NVFP4 here and were cut"), (lost, "zero or too small for NVFP4 here")):
            if names:
                text = f"activations of {_first(names)} were {what}: {self.remedy}"
                self.context.recorder.note(f"{self.name}: {text}")


def _nothing(left: Counter[str]) -> str:
    """That there is no linear to quantize, and what became of all."""
    found = ", ".join(f"{number} {why}" for why, number in left.most_common())
    return f"no linear is left to quantize ({found}): name fewer in modules_to_not_convert, or load the original model"


def _came_stored(layers: list[Layer]) -> bool:
    """Whether a denoiser's layers came with stored weights; then all of them did."""
    return bool(layers) and isinstance(layers[0].module, StoredLinear)


def _place(denoiser: Denoiser) -> torch.device | None:
    """Where a denoiser that is offloaded now will run, None where it is not."""
    place = getattr(getattr(denoiser.module, "_hf_hook", None), "execution_device", None)
    return None if place is None else torch.device(place)


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} other layers"
