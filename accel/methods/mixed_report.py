"""What mixed precision says of a run beside what all quantizations say: what was chosen, and why a mean is off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from accel.kernels.quantized_linear import Activation
from accel.methods.quantized_report import mean_bits

# Mean bits further from what was asked for are explained. Chosen by us.
_NEAR = 0.1


def replaced_in_words(figures: Mapping[str, Any]) -> str | None:
    """That NVFP4 was chosen for calls that ran in INT8, None where it was for none."""
    replaced = figures["chosen"]["nvfp4"] - figures["calls"]["nvfp4"]
    total = sum(figures["calls"].values()) - figures["modulation_calls"]
    return f"NVFP4 was chosen for {replaced / total:.1%} of the calls, which ran in INT8" if replaced else None


def off_target(
    figures: Mapping[str, Any],
    *,
    high: Activation,
    firsts: int,
    steps: int,
    shares: Iterable[float],
    purified: bool,
    without_line: bool,
) -> str | None:
    """Why the mean bits of a run are not those that were asked for, None where they are, or none were asked for.

    `firsts` of the `steps` know nothing; `shares` are the shares of the calls that were to get the high format, by
    transformer, and may be impossible; `purified` says whether a cache beside is kept clean, `without_line` whether
    there are layers that a calibration says nothing of.
    """
    target, found = figures["target_bits"], figures["average_bits"]
    if target is None or found is None or abs(found - target) <= _NEAR:
        return None
    modulation = figures["modulation_calls"]
    reasons = []
    if figures["chosen"] != figures["calls"]:
        reasons.append("NVFP4 was chosen where INT8 ran")
        chosen = mean_bits(figures["chosen"], modulation)
        if chosen is not None and abs(chosen - target) <= _NEAR:
            return reasons[0]
    if any(not 0 <= share <= 1 for share in shares):
        reasons.append("the linears with a fixed format leave too few to choose for")
    if firsts > max(0.0, *shares) * steps:
        reasons.append(f"nothing is known in the first of {steps} steps, which gets the finer format")
    if figures["calls"]["plain"] > modulation and high != "plain":
        reasons.append("inputs with outliers beside a cache were left as they are")
    if figures["skipped"]:
        finer = "what is computed behind a skipped step gets the finer format"
        reasons.append(finer if purified else "a cache skipped steps that were to make up for the first")
    if without_line:
        reasons.append("the calibration says nothing of some layers, which get the finer format")
    if figures["calibrated"] and not reasons:
        reasons.append("the errors foretold here lie elsewhere than in the calibration runs")
    return " and ".join(reasons) or "the errors of some layers are not known, and those get the finer format"
