"""The figures of a quantization: what is stored, and in which formats a run computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accel.kernels.quantized_linear import ACTIVATIONS
from accel.methods.quantized_linear import QuantizedLinear
from accel.methods.weight_bytes import PRODUCTS, scratch_bytes, stored_bytes
from accel.runtime.recorder import RunRecord

# Activations as they are count as 16 bits, whatever the model's dtype.
BITS = {"plain": 16, "int8": 8, "nvfp4": 4}


@dataclass
class QuantizedWeights:
    """What an installation stored; bytes are those of the quantized linears' weights, biases apart."""

    formats: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    rotated: int = 0
    unrotated: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    # The most that a single product makes of its weight, by the form of the operation and the activations' format.
    scratch: Counter[tuple[str, str]] = field(default_factory=Counter)
    # Where the original weights are meanwhile, in words.
    originals: dict[str, None] = field(default_factory=dict)

    def add(self, layer: QuantizedLinear, itemsize: int, *, unrotated: bool) -> None:
        """Counts one layer; `unrotated` is one that should be rotated and has no multiple of 128 channels."""
        shape = layer.out_features, layer.in_features
        self.formats[layer.weight_format] += 1
        self.rotated += layer.rotated
        self.unrotated += unrotated
        self.bytes_before += shape[0] * shape[1] * itemsize
        self.bytes_after += stored_bytes(layer.weight_format, *shape)
        for form in PRODUCTS:
            for activation in ACTIVATIONS:
                needed = scratch_bytes(layer.weight_format, activation, *shape, itemsize, form)
                self.scratch[form, activation] = max(self.scratch[form, activation], needed)


def report(
    name: str, weights: QuantizedWeights, record: RunRecord, scales: str, modulation: Mapping[str, int]
) -> dict[str, Any]:
    """The figures of one run, as plain numbers.

    `scales` says what NVFP4 activations are scaled by; `modulation` has by denoiser, as bits, the layers whose
    activations always stay as they are, which say nothing of the formats that were chosen.
    """
    calls: dict[str, int] = {activation: record.count(name, activation) for activation in ACTIVATIONS}
    apart = sum(
        (layers & modulation.get(denoiser, 0)).bit_count()
        for (by, what, denoiser, *_), layers in record.events.items()
        if by == name and what in ACTIVATIONS
    )
    skipped = _skipped(name, record, {})
    form = str(record.facts.get((name, "form")))
    return {
        "layers": dict(weights.formats),
        "left": dict(weights.left),
        "rotated": weights.rotated,
        # Should be rotated, but 128 does not divide their channels.
        "unrotated": weights.unrotated,
        "weight_bytes_before": weights.bytes_before,
        "weight_bytes": weights.bytes_after,
        # The most that one of the products that ran made of its weight, for that call.
        "scratch_bytes": max((weights.scratch[form, a] for a, number in calls.items() if number), default=0),
        # None where the weights came stored, and there are none.
        "originals": " and ".join(weights.originals) or None,
        # Calls of quantized linears by the format of their activations; of these, those of the linears of modulation,
        # which are in no mean; and calls, of all, that a cache spared.
        "calls": calls,
        "modulation_calls": apart,
        # What NVFP4 activations were scaled by, None where none ran.
        "activation_scales": scales if calls["nvfp4"] else None,
        "skipped": skipped,
        "calls_by_step": {a: record.count_by_step(name, a) for a, number in calls.items() if number},
        "average_bits": mean_bits(calls, apart),
        # A call that was spared counts as 0 bits, as in the paper.
        "average_bits_with_skipped": mean_bits(calls, apart, _skipped(name, record, modulation)),
    }


def mean_bits(calls: Mapping[str, int], apart: int, skipped: int = 0) -> float | None:
    """The mean bits of calls by the format of their activations, without `apart` of those that stayed as they are, and
    with some of 0 bits; None where there are no others."""
    computed = sum(calls.values()) - apart
    bits = sum(BITS[activation] * number for activation, number in calls.items()) - BITS["plain"] * apart
    return bits / (computed + skipped) if computed else None


def describe(figures: dict[str, Any]) -> str:
    """The same as one line."""
    layers = " and ".join(f"{number} linears in {kind.upper()}" for kind, number in figures["layers"].items())
    before, after = figures["weight_bytes_before"], figures["weight_bytes"]
    parts = [f"{layers}, {before / 1e6:.1f} MB of weights in {after / 1e6:.1f} MB"]
    if figures["left"]:
        parts[0] += f", {sum(figures['left'].values())} left as they are"
    if figures["unrotated"]:
        parts[0] += f", {figures['unrotated']} unrotated (128 does not divide their channels)"
    if figures["originals"]:
        parts[0] += f", originals {figures['originals']}"
    apart = figures["modulation_calls"]
    calls = {**figures["calls"], "plain": figures["calls"]["plain"] - apart}
    total = sum(calls.values())
    if total:
        names = {"plain": "unquantized", "int8": "INT8", "nvfp4": "NVFP4"}
        shares = ", ".join(f"{names[a]} {n / total:.1%}" for a, n in calls.items() if n)
        beside = f" ({apart} calls of modulation, unquantized, apart)" if apart else ""
        parts.append(f"activations {shares}, {figures['average_bits']:.2f} bits in the mean{beside}")
        if figures["skipped"]:
            parts[-1] += f" ({figures['average_bits_with_skipped']:.2f} with the calls that a cache spared)"
        if figures["activation_scales"]:
            parts.append(f"NVFP4 activations scaled by {figures['activation_scales']}")
    return "; ".join(parts)


def _skipped(name: str, record: RunRecord, apart: Mapping[str, int]) -> int:
    """Calls that did not happen, of layers that ran in the run; others, such as those for an image, never do. `apart`
    has by denoiser, as bits, layers that do not count."""
    ran: Counter[str] = Counter()
    for (by, what, denoiser, *_), layers in record.events.items():
        if by == name and what != "skipped":
            ran[denoiser] |= layers
    return sum(
        (layers & ran[denoiser] & ~apart.get(denoiser, 0)).bit_count()
        for (by, what, denoiser, *_), layers in record.events.items()
        if by == name and what == "skipped"
    )
