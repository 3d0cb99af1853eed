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
from typing import Any, ClassVar, Literal

import torch

from accel.errors import AccelError
from accel.kernels.delta import delta_statistics
from accel.kernels.quantized_linear import Activation, emulation
from accel.methods.activation_scales import CALIBRATE
from accel.methods.arriving import Arriving, summed
from accel.methods.base import Context, register
from accel.methods.fingerprint import fingerprint
from accel.methods.layer_choice import Layer
from accel.methods.mixed_report import off_target, replaced_in_words
from accel.methods.mixed_settings import MixedPrecisionConfig as MixedPrecisionConfig
from accel.methods.mixed_settings import check
from accel.methods.precision_calibration import Calibration, Measurements
from accel.methods.precision_rule import Rule, ShareRule, ThresholdRule, later_share
from accel.methods.sensitive import Sparing
from accel.pipelines.context_parallel import Ranks, sharing_tokens
from accel.pipelines.sites import BlockSite, Denoiser, require_all_tokens
from accel.runtime.clock import Moment
from accel.runtime.recorder import RunRecord

Measured = Literal["change", "errors", "ratios"]
# A line on which every error is unknown.
_UNKNOWN = (math.nan, math.nan)
# Under which it is recorded that the rule chose NVFP4 for a layer that ran in INT8.
_REPLACED = "mixed, in place of the format chosen"


@dataclass
class _State:
    """What is known and decided while one transformer runs."""

    period: tuple[int, str] | None = None
    rule: Rule = field(default_factory=lambda: ShareRule(0.0))
    first: int = -1
    step: int = -1
    branch: str = ""
    # Those that it chooses for, and of them those that have run in this step, in the branch that decides.
    layers: list[Layer] = field(default_factory=list)
    ran: set[int] = field(default_factory=set)
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

    def settle(self) -> None:
        """Takes what did not run in the step that is over, as where a cache spared it, out of the rule's account."""
        if isinstance(self.rule, ShareRule):
            self.rule.skipped({layer.index for layer in self.layers} - self.ran)
        self.ran.clear()

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
        self._low, self._high = config.formats
        self._calibration: Calibration | None = None
        self._measuring: Measurements | None = None
        # None where the settings decide.
        self._make_rule: Callable[[], Rule] | None = None
        # The layers that get a format for each call.
        self._by_block: dict[tuple[str, int], list[Layer]] = {}
        self._num_steps = 0
        self._state = _State()

    def low_activation(self, layer: Layer) -> Activation:
        # Until something is known.
        return self._high

    def activations(self, layer: Layer) -> tuple[Activation, ...]:
        return (self._low, self._high) if self._chooses(layer) else super().activations(layer)

    def runs_in(self, activation: Activation, device: torch.device) -> Activation:
        native = activation != "nvfp4" or self.config.emulate or emulation("nvfp4", "nvfp4", device) is None
        return activation if native else "int8"

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
        check(self.config)
        denoisers = self.context.facts.denoisers
        if self.config.calibration is not None:
            self._calibration = Calibration.load(self.config.calibration)
            self._calibration.check(fingerprint(self.name, denoisers), self._low, self.config.rotate)
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
            rule = self._rule_of_settings(moment.denoiser) if self._make_rule is None else self._make_rule()
            self._state.settle()
            if isinstance(rule, ShareRule) and isinstance(self._state.rule, ShareRule):
                rule.follow(self._state.rule)
            layers = [layer for (name, _), each in self._by_block.items() if name == moment.denoiser for layer in each]
            self._state = _State(period, rule, moment.step, layers=layers, ranks=ranks)
        state = self._state
        if moment.step == state.step:
            return
        if state.step >= 0:
            state.settle()
        state.step, state.branch = moment.step, moment.branch
        state.receive(any_age=not self.config.purify)
        state.finer = state.rule.high(state.layers, state.changes, state.errors, max(1, self._num_steps - moment.step))

    def describe(self, record: RunRecord) -> str:
        figures = self.report(record)
        off = figures["off_target"]
        told = [replaced_in_words(figures), off and f"the mean is not {figures['target_bits']:g} bits: {off}"]
        return "; ".join([super().describe(record), self._rule_in_words(), *filter(None, told)])

    def report(self, record: RunRecord) -> dict[str, Any]:
        figures = super().report(record)
        calls = figures["calls"]
        replaced = record.count(_REPLACED)
        # What the rule chose, of the calls that ran; `calls` are the formats that they ran in.
        figures["chosen"] = {**calls, "nvfp4": calls["nvfp4"] + replaced, "int8": calls["int8"] - replaced}
        figures["calibrated"] = self._calibration is not None
        figures["target_bits"] = None if self._make_rule is not None else self.config.target_bits
        figures["off_target"] = off_target(
            figures,
            high=self._high,
            firsts=len(self.context.facts.denoisers),
            steps=record.num_steps,
            shares=[] if figures["target_bits"] is None else [self._wanted_share(name) for name in self.layers],
            purified=self.config.purify,
            without_line=bool(self._without_line()),
        )
        return figures

    def _chooses(self, layer: Layer) -> bool:
        """Whether its format may change from call to call; outside of the blocks nothing tells."""
        return layer.block is not None and not (layer.modulation or self.spared(layer))

    def _wanted_share(self, denoiser: str) -> float:
        """The share of calls that get the high format, beside the layers for which nothing chooses."""
        layers = [layer for layer in self.layers[denoiser] if not layer.modulation]
        fixed = [self.default_activation(layer) for layer in layers if not self._chooses(layer)]
        return self.config.wanted_share(len(layers) - len(fixed), fixed)

    def _rule_of_settings(self, denoiser: str) -> Rule:
        config, found = self.config, self._calibration
        # Of a layer that the calibration runs did not measure nothing is known.
        lines = {} if found is None else {**dict.fromkeys(self._without_line(), _UNKNOWN), **found.lines}
        if config.threshold is not None:
            return ThresholdRule(config.threshold, lines)
        share = min(1.0, max(0.0, self._wanted_share(denoiser)))
        if found is not None:
            later = later_share(share, self._num_steps, len(self.context.facts.denoisers))
            return ThresholdRule(found.threshold(1.0 - later), lines)
        return ShareRule(share)

    def _without_line(self) -> list[str]:
        """The layers that the rule chooses for and the calibration says nothing of; none without a calibration."""
        lines = self._calibration.lines if self._calibration is not None else None
        names = (layer.name for layer in chain.from_iterable(self._by_block.values()))
        return [] if lines is None else [name for name in names if name not in lines]

    def _rule_in_words(self) -> str:
        config = self.config
        if self._make_rule is not None:
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
        measures = moment.branch == state.branch
        replaced = []
        for layer in layers:
            activation = self._high if layer.index in state.finer or self._measuring is not None else self._low
            # Written so that a NaN counts as an outlier.
            if purified and not state.ratios.get(layer.index, 0.0) <= self.config.outlier_ratio:
                activation = "plain"
            measured = self._low if measures and self._wants_errors(site.index) else None
            look = 2 if self._measuring is not None else int(state.looking and measures)
            runs = self.runs_in(activation, self._module(layer).seen.device)
            if runs != activation:
                replaced.append(layer)
            self._module(layer).choose(runs, look=look, measure=measured)
        output = proceed(*args, **kwargs)
        ran = {layer.index for layer in layers if self._module(layer).ran.any()}
        for layer in replaced:
            if layer.index in ran:
                self.context.recorder.event(_REPLACED, "nvfp4", moment, layer.index)
        if measures:
            state.ran |= ran
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
        # Where a model is spread over several devices, a block may be given its streams on another than its own, and
        # they may lie on several themselves; under autocast it may return another dtype.
        pairs = zip(outputs, inputs, strict=True)
        statistics = [delta_statistics(after, before.to(after)) for after, before in pairs]
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
