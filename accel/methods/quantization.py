"""What the quantizations share: settings, installation, and the record of the formats that ran.

Each linear of the transformer gets a weight that is stored once, in INT8 or NVFP4; a method says in which format the
activations are, for each layer and call. What ran is counted inside the operation itself and collected after each call
of the denoiser.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import torch

from accel.errors import AccelError, AccelWarning
from accel.kernels.forms import select
from accel.kernels.quantized_linear import ACTIVATIONS, Activation, emulation
from accel.kernels.rotation import BLOCK
from accel.methods.activation_scales import range_of
from accel.methods.activation_watch import ActivationWatch, in_short
from accel.methods.as_stored import require_as_stored
from accel.methods.base import Context, Method
from accel.methods.converted_linear import convert, revert
from accel.methods.convertible import require_convertible
from accel.methods.foretold import foretell, place_of
from accel.methods.fusion_refusals import refuse_fusions
from accel.methods.layer_choice import Layer, check_names, choose_layers
from accel.methods.needs import Slot
from accel.methods.original_weights import WeightFile, require_same, weight_files
from accel.methods.quantization_settings import QuantizationConfig as QuantizationConfig
from accel.methods.quantized_linear import ROTATED_SCALE, SCALE, QuantizedLinear, store
from accel.methods.quantized_report import QuantizedWeights, describe, report
from accel.methods.stored_linear import StoredLinear, rest, stored_layers
from accel.methods.weight_bytes import Product, WeightFormat
from accel.pipelines.offloading import groups, regroup
from accel.pipelines.sites import Denoiser
from accel.runtime.recorder import RunRecord


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
        self._watch = ActivationWatch(self.layers)

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

    def runs_in(self, activation: Activation, device: torch.device) -> Activation:
        """The format in which activations run that a layer is to get on a device."""
        return activation

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
                # Undone last, when all weights are back.
                undo.append(partial(regroup, denoiser.module))
                if not _came_stored(layers):
                    if not self.config.keep_original:
                        files = weight_files(self.name, denoiser)
                    self.weights.originals[_place_of_originals(files)] = None
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
            undo += refuse_fusions(denoiser, None if _came_stored(self.layers[denoiser.name]) else self.name)
        return undo

    def start_run(self, num_steps: int) -> None:
        self._running, self._told = True, False
        for layer in self._all():
            self._module(layer).seen.zero_()
        self._watch = ActivationWatch(self.layers)
        self._tell_of_replaced()
        self._tell_of_streams()

    def end_run(self) -> None:
        if not self._running:
            return
        self._running = False
        for layer in self._all():
            self._module(layer).choose(self.default_activation(layer))
        self._tell_of_activations()

    def report(self, record: RunRecord) -> dict[str, Any]:
        modulation = {
            name: sum(1 << layer.index for layer in layers if layer.modulation) for name, layers in self.layers.items()
        }
        return report(self.name, self.weights, record, self.activation_scales(), modulation)

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
        judged = [each.module for each in self.layers[layer.denoiser] if not each.modulation]
        rotates = any(isinstance(other, StoredLinear) and other.rotated for other in judged)
        unrotated = rotates and not (module.rotated or layer.modulation)
        self.weights.add(module, module.weight_dtype.itemsize, unrotated=unrotated)
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
        if isinstance(sample, list):
            # Some transformers are given their samples one by one.
            sample = sample[0]
        device = sample.device if isinstance(sample, torch.Tensor) else None
        if isinstance(sample, torch.Tensor):
            self.context.recorder.fact(self.name, "form", _form(sample))
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
                    self._watch.ran_in_nvfp4(layer)
                for what in ran or ["skipped"]:
                    self.context.recorder.event(self.name, what, moment, layer.index)
            self._watch.called(denoiser.name)
        return output

    def _foretell(self, device: torch.device | None) -> list[str]:
        """What to know of a run on a device, or before the first, where it will be is guessed."""
        places = {denoiser.name: device or place_of(denoiser) for denoiser in self.context.facts.denoisers}
        return foretell([(layer, self.activations(layer)) for layer in self._all()], places, self.runs_in)

    def _tell_of_replaced(self) -> None:
        for denoiser in self.context.facts.denoisers:
            there = {id(module) for module in denoiser.module.modules()}
            gone = [layer.name for layer in self.layers[denoiser.name] if id(layer.module) not in there]
            if gone:
                text = (
                    f"{self.name}: after enable something else was put in the place of {in_short(gone)}, and runs as "
                    "it is: call accel.disable(pipe), and enable again"
                )
                self.context.recorder.note(text)
                warnings.warn(text, AccelWarning, stacklevel=2)

    def _tell_of_streams(self) -> None:
        # With one, diffusers brings buffers onto the device and takes none off it.
        for denoiser in self.context.facts.denoisers:
            if any(group.stream is not None for group in groups(denoiser.module)):
                self.context.recorder.note(
                    f"{self.name}: pipe.{denoiser.name} is offloaded in groups with a stream, and the stored weights "
                    "stay on the device: use_stream=False takes them off"
                )

    def _tell_of_activations(self) -> None:
        watch, self._watch = self._watch, ActivationWatch(self.layers)
        cut, lost = watch.unfit(self.remedy)
        texts = [f"{self.name}: {text}" for text in (watch.broken(), cut, lost) if text is not None]
        for text in texts:
            self.context.recorder.note(text)
        # Without what was cut a result may be wrong; what is lost below is small.
        wrong = len(texts) - (lost is not None)
        for text in texts[:wrong]:
            warnings.warn(text, AccelWarning, stacklevel=2)


def _nothing(left: Counter[str]) -> str:
    """That there is no linear to quantize, and what became of all."""
    found = ", ".join(f"{number} {why}" for why, number in left.most_common())
    return f"no linear is left to quantize ({found}): name fewer in modules_to_not_convert, or load the original model"


def _form(sample: torch.Tensor) -> Product:
    """The form in which the products of a call run."""
    form = select(sample)
    return "native" if form == "triton" and emulation("nvfp4", "nvfp4", sample.device) is None else form


def _place_of_originals(files: dict[str, WeightFile] | None) -> str:
    if files is None:
        return "in host memory"
    folders = dict.fromkeys(str(file.path.parent) for file in files.values())
    return f"read again from {' and '.join(folders)} at disable"


def _came_stored(layers: list[Layer]) -> bool:
    """Whether a denoiser's layers came with stored weights; then all of them did."""
    return bool(layers) and isinstance(layers[0].module, StoredLinear)
