"""Activations that choose their precision: one NVFP4 weight, and NVFP4 or INT8 activations for each layer and step.

6Bit-Diffusion (arXiv 2603.18742, section 4.1): how much a block changes its input tells how sensitive it is, and that
changes slowly from step to step. So with a calibration, what it did at the step before decides; without one, the errors
that the layers had at the first step of the run. All is decided once a step, on the guidance branch that comes first.
Where the other branches are calls of their own, what it needs has arrived on the host during them; with batched
guidance it waits for the step before, once a step. Beside a cache of block changes, what goes into the cache is
purified (section 4.3): inputs with outliers are not quantized in a block whose change a cache means to keep, and a
block that is computed after it was skipped gets the finer format.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from accel.errors import AccelError
from accel.kernels.delta import delta_statistics
from accel.kernels.quantized_linear import Activation
from accel.methods.activation_scales import CALIBRATE
from accel.methods.arriving import Arriving, summed
from accel.methods.base import Context, Toward, register
from accel.methods.fingerprint import fingerprint
from accel.methods.layer_choice import Layer
from accel.methods.precision_calibration import Calibration, Measurements
from accel.methods.precision_rule import Rule, ShareRule, ThresholdRule, later_share
from accel.methods.quantized_report import BITS
from accel.methods.sensitive import Sparing, SparingConfig
from accel.pipelines.context_parallel import Ranks, sharing_tokens
from accel.pipelines.sites import BlockSite, Denoiser, require_all_tokens
from accel.runtime.clock import Moment
from accel.runtime.recorder import RunRecord

Measured = Literal["change", "errors", "ratios"]
# As a setting names a format of activations.
_ACTIVATIONS: dict[str, Activation] = {"nvfp4": "nvfp4", "int8": "int8", "16bit": "plain"}


class MixedPrecisionConfig(SparingConfig):
    """Settings of mixed precision, beside those of all quantizations.

    Attributes:
        low: Format of the activations that a layer gets where it bears it: "nvfp4", or "int8" beside `high="16bit"`.
        high: Format of the activations where it does not: "int8", or "16bit" for activations as they are.
        target_bits: Mean bits of the activations over all computed layers and steps. The paper reports about 6.
        threshold: Predicted error (with a calibration) or change of the block (without) above which a layer gets the
            high format; None lets `target_bits` decide.
        calibration: File that `accel.measure.calibration.calibrate_mixed` wrote for this model, which also tells by
            which power of two each layer's NVFP4 activations are scaled. Without, the errors of the layers are measured
            at the first step of each run, those with the largest get the high format, and the power is 1, or 4 where
            activations are rotated.
        rotate: Whether activations and weights are multiplied by a Hadamard matrix in blocks of 128 channels, which
            spreads outliers; INT8 needs it more than NVFP4 does. As published.
        purify: Whether a cache of block changes beside it is kept clean: no quantization of inputs with outliers where
            a change is to be kept, and the high format after a skipped step. As published.
        outlier_ratio: max|x| / mean|x| above which an input has outliers. 25 as published.
    """

    method: ClassVar[str] = "mixed"
    files: ClassVar[tuple[str, ...]] = ("calibration",)
    levers: ClassVar[dict[str, tuple[str, ...]]] = {
        "nvfp4": ("target_bits", "threshold", "low", "modules_to_not_convert"),
        "int8": ("target_bits", "threshold", "high", "modules_to_not_convert"),
        "plain": ("target_bits", "high", "modules_to_not_convert"),
    }
    toward_plain: ClassVar[dict[str, Toward]] = {
        **SparingConfig.toward_plain,
        "target_bits": "raise",
        "threshold": "lower",
    }

    low: Literal["nvfp4", "int8"] = "nvfp4"
    high: Literal["int8", "16bit"] = "int8"
    target_bits: Annotated[float, Field(ge=4.0, le=16.0)] = 6.0
    threshold: Annotated[float, Field(ge=0.0)] | None = None
    calibration: str | None = None
    rotate: bool = True
    purify: bool = True
    outlier_ratio: Annotated[float, Field(ge=1.0)] = 25.0

    @property
    def high_share(self) -> float:
        """The fraction of layers and steps that get the high format so that the mean is `target_bits`."""
        low, high = (BITS[_ACTIVATIONS[name]] for name in (self.low, self.high))
        return (self.target_bits - low) / (high - low)


@dataclass
class _State:
    """What is known and decided while one transformer runs."""

    period: tuple[int, str] | None = None
    rule: Rule = field(default_factory=lambda: ShareRule(0.0))
    first: int = -1
    step: int = -1
    branch: str = ""
    # Of this step: the layers with the finer format, and by block the changes that decided.
    finer: set[int] = field(default_factory=set)
    changes: dict[int, float] = field(default_factory=dict)
    # By layer: the error at the first step, and max|x| / mean|x| as last seen; and whether a cache asks for that.
    errors: dict[int, float] = field(default_factory=dict)
    ratios: dict[int, float] = field(default_factory=dict)
    looking: bool = False
    # The processes that have the tokens among them.
    ranks: Ranks | None = None
    # By block, its change as last seen, and at which step.
    seen: dict[int, tuple[int, float]] = field(default_factory=dict)
    # On their way to the host: a block's change under its index and step, and the errors or ratios of some layers,
    # with what they are relative to behind them.
    arriving: Arriving[tuple[Measured, list[int]]] = field(default_factory=Arriving)

    def receive(self, *, any_age: bool) -> None:
        """Takes in what was measured: changes of the step before, or with `any_age` also of earlier ones."""
        for (what, about), parts in self.arriving.take():
            if what == "change":
                block, step = about
                self.seen[block] = step, _change(summed(parts))
            elif what == "errors":
                self.errors.update(zip(about, _together(parts, _quadratic_mean), strict=True))
            else:
                self.ratios.update(zip(about, _together(parts, _largest_to_mean), strict=True))
        self.changes = {
            block: change for block, (step, change) in self.seen.items() if any_age or step == self.step - 1
        }


@register(MixedPrecisionConfig)
class MixedPrecision(Sparing):
    """Mixed precision on one pipeline."""

    config: MixedPrecisionConfig
    remedy: ClassVar[str] = CALIBRATE

    def __init__(self, config: MixedPrecisionConfig, context: Context) -> None:
        super().__init__(config, context)
        self._low, self._high = _ACTIVATIONS[config.low], _ACTIVATIONS[config.high]
        self._calibration: Calibration | None = None
        self._measuring: Measurements | None = None
        self._make_rule = self._rule_of_settings
        self.fingerprint = ""
        # The layers that get a format for each call.
        self._by_block: dict[tuple[str, int], list[Layer]] = {}
        self._num_steps = 0
        self._state = _State()

    def low_activation(self, layer: Layer) -> Activation:
        # Until something is known.
        return self._high

    def activations(self, layer: Layer) -> tuple[Activation, ...]:
        return (self._low, self._high) if self._chooses(layer) else super().activations(layer)

    def measure(self) -> Measurements:
        """From now on gives all layers the high format, and collects what a calibration is made of."""
        if self._calibration is not None or self.config.threshold is not None:
            raise AccelError(f"{self.name}: a calibration is made without another, and without threshold")
        require_all_tokens(f"{self.name}: a calibration", self.context.facts.denoisers)
        self._measuring = Measurements(self._low)
        return self._measuring

    def decide_by(self, make_rule: Callable[[], Rule]) -> None:
        """From now on decides by the rules that `make_rule` gives, one for each run, chunk and transformer, and not by
        the settings: to compare criteria."""
        self._make_rule = make_rule

    def install(self) -> list[Callable[[], None]]:
        _check(self.config)
        denoisers = self.context.facts.denoisers
        self.fingerprint = fingerprint(self.name, denoisers)
        if self.config.calibration is not None:
            self._calibration = Calibration.load(self.config.calibration)
            self._calibration.check(self.fingerprint, self._low, self.config.rotate)
            self.scales = self._calibration.scales
        undo = super().install()
        for layer in self._all():
            if layer.block is not None and self._chooses(layer):
                self._by_block.setdefault((layer.denoiser, layer.block), []).append(layer)
        for denoiser in denoisers:
            undo += [
                self.context.hooks.add(site.module, partial(self._in_block, denoiser, site), innermost=True)
                for site in (*denoiser.blocks, *denoiser.beside)
            ]
        return undo

    def start_run(self, num_steps: int) -> None:
        super().start_run(num_steps)
        self._state = _State()
        self._num_steps = num_steps

    def end_run(self) -> None:
        if self._measuring is not None and self._running:
            for layer in chain.from_iterable(self._by_block.values()):
                self._measuring.largest.add(layer, self._module(layer).seen[4].item())
        super().end_run()
        self._state = _State()

    def start_call(self, moment: Moment) -> None:
        period = (moment.chunk, moment.denoiser)
        if period != self._state.period:
            ranks = sharing_tokens(next(d.module for d in self.context.facts.denoisers if d.name == moment.denoiser))
            rule = self._make_rule()
            if isinstance(rule, ShareRule) and isinstance(self._state.rule, ShareRule):
                rule.follow(self._state.rule)
            self._state = _State(period, rule, moment.step, ranks=ranks)
        state = self._state
        if moment.step == state.step:
            return
        state.step, state.branch = moment.step, moment.branch
        state.receive(any_age=not self.config.purify)
        layers = [layer for (name, _), each in self._by_block.items() if name == moment.denoiser for layer in each]
        state.finer = state.rule.high(layers, state.changes, state.errors, max(1, self._num_steps - moment.step))

    def describe(self, record: RunRecord) -> str:
        return f"{super().describe(record)}; {self._rule_in_words()}"

    def report(self, record: RunRecord) -> dict[str, Any]:
        return {**super().report(record), "calibrated": self._calibration is not None}

    def _chooses(self, layer: Layer) -> bool:
        """Whether its format may change from call to call; outside of the blocks nothing tells."""
        return layer.block is not None and not (layer.modulation or self.spared(layer))

    def _rule_of_settings(self) -> Rule:
        config, found = self.config, self._calibration
        if config.threshold is not None:
            return ThresholdRule(config.threshold, found.lines if found else {})
        if found is not None:
            later = later_share(config.high_share, self._num_steps, len(self.context.facts.denoisers))
            return ThresholdRule(found.threshold(1.0 - later), found.lines)
        return ShareRule(config.high_share)

    def _rule_in_words(self) -> str:
        config = self.config
        if self._make_rule != self._rule_of_settings:
            return "formats chosen by a rule that was put in"
        if self._calibration is not None:
            return "formats chosen by errors as calibrated"
        if config.threshold is not None:
            return f"not calibrated: blocks that changed by more than {config.threshold} get the finer format"
        return "not calibrated: the layers with the largest errors at the first step get the finer format"

    def _in_block(
        self,
        denoiser: Denoiser,
        site: BlockSite,
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        moment = self.context.clock.now
        if moment is None:
            return proceed(*args, **kwargs)
        state = self._state
        layers = self._by_block.get((denoiser.name, site.index), [])
        purified = self.config.purify and self.context.board.change_kept(site.index)
        state.looking |= purified
        measures = moment.branch == state.branch and site.index < len(denoiser.blocks)
        for layer in layers:
            activation = self._high if layer.index in state.finer or self._measuring is not None else self._low
            # Written so that a NaN counts as an outlier.
            if purified and not state.ratios.get(layer.index, 0.0) <= self.config.outlier_ratio:
                activation = "plain"
            measured = self._low if measures and self._wants_errors(site.index) else None
            look = 2 if self._measuring is not None else int(state.looking and measures)
            self._module(layer).choose(activation, look=look, measure=measured)
        output = proceed(*args, **kwargs)
        if measures:
            streams = site.streams(args, kwargs)
            self._measure(moment.step, site, streams, site.unpack(output, streams), layers)
        return output

    def _wants_errors(self, block: int) -> bool:
        """Whether the errors of a block's layers are to be measured in this call."""
        if self._measuring is not None:
            return block in self._state.changes
        return isinstance(self._state.rule, ShareRule) and self._state.step == self._state.first

    def _measure(
        self,
        step: int,
        site: BlockSite,
        inputs: tuple[torch.Tensor, ...],
        outputs: tuple[torch.Tensor, ...],
        layers: list[Layer],
    ) -> None:
        statistics = [delta_statistics(after, before) for after, before in zip(outputs, inputs, strict=True)]
        # The streams of a block may lie on several devices.
        total = torch.stack([each.to(statistics[0].device) for each in statistics]).sum(0)
        self._state.arriving.add(("change", [site.index, step]), total, self._state.ranks)
        if not layers:
            return
        seen = torch.stack([self._module(each).seen for each in layers], 1)
        indices = [each.index for each in layers]
        if self._state.looking:
            self._state.arriving.add(("ratios", indices), seen[2:6:3].flatten(), self._state.ranks)
        if self._measuring is not None and site.index in self._state.changes:
            self._measuring.add(layers, self._state.changes[site.index], seen[3])
        elif self._wants_errors(site.index):
            self._state.arriving.add(("errors", indices), seen[3:7:3].flatten(), self._state.ranks)


def _change(statistics: list[float]) -> float:
    """Gamma from what `delta_statistics` gives; NaN where it is not known."""
    squared, of_input, *_ = statistics
    return math.sqrt(squared / of_input) if of_input > 0 and squared >= 0 else math.nan


def _together(parts: list[list[float]], joined: Callable[[list[tuple[float, float]]], float]) -> list[float]:
    """The numbers of some layers, of which each process has sent its own and then what they are relative to."""
    number = len(parts[0]) // 2
    if len(parts) == 1:
        return parts[0][:number]
    return [joined([(part[place], part[number + place]) for part in parts]) for place in range(number)]


def _quadratic_mean(parts: list[tuple[float, float]]) -> float:
    """An error relative to a norm, of all parts of a product together."""
    norm = sum(weight**2 for _, weight in parts)
    return math.sqrt(sum((error * weight) ** 2 for error, weight in parts) / norm) if norm else math.nan


def _largest_to_mean(parts: list[tuple[float, float]]) -> float:
    """max|x| / mean|x| of parts of one size together. A NaN stays one, whichever part has it."""
    mean = sum(weight for _, weight in parts) / len(parts)
    largest = [ratio * weight for ratio, weight in parts]
    return max(largest) / mean if mean and not any(map(math.isnan, largest)) else math.nan


def _check(config: MixedPrecisionConfig) -> None:
    low, high = (BITS[_ACTIVATIONS[name]] for name in (config.low, config.high))
    if low >= high:
        raise AccelError(f"mixed: low={config.low!r} is not below high={config.high!r}: set high='16bit'")
    if config.threshold is None and not low <= config.target_bits <= high:
        nearest = min((low, high), key=lambda bits: abs(bits - config.target_bits))
        raise AccelError(
            f"mixed: target_bits={config.target_bits:g} does not lie between low={config.low!r} with {low} and "
            f"high={config.high!r} with {high} (nearest: {nearest})"
        )
