"""What a guider of diffusers does with the transformer: which branches it calls, and which layers one goes without.

Most call the transformer as it is, once for each branch. Skip-layer guidance and autoguidance leave out whole blocks or
feed-forwards for one branch, by hooks of diffusers that stand inside of those of Accel: such a branch computes the same
function in every step, so that what a method keeps of it stays true, under the branch's own name. Other guiders change
a layer where a method of Accel may have taken its place, or not alike in all steps, and are refused.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from diffusers.hooks._helpers import TransformerBlockRegistry
from torch import nn

from accel.errors import AccelError
from accel.pipelines.facts import SKIPPING_GUIDERS, Family, Guidance

# The attribute with the configurations that say which layers one branch goes without.
_SKIPPING = dict(zip(SKIPPING_GUIDERS, ("skip_layer_config", "auto_guidance_config"), strict=True))

_BY_PROCESSOR = "diffusers skips attention by the class of its processor, in whose place one of Accel may stand"
_REFUSED = {
    "PerturbedAttentionGuidance": _BY_PROCESSOR,
    "SmoothedEnergyGuidance": "it blurs queries by the places of their tokens, whose order a method may change",
}


def guided(pipe: Any, family: Family, guidance: Guidance, denoiser: nn.Module) -> Guidance:
    """How the pipeline guides with the guider that it has now, whose branches are those of the result.

    Raises `AccelError` where the guider changes the transformer in a way that methods cannot follow exactly.
    """
    if not family.guiders:
        return guidance
    guider: Any = getattr(pipe, "guider", None)
    name = type(guider).__name__
    reason: str | None
    if name not in family.guiders:
        reason = _REFUSED.get(name, "it may change layers of the transformer for some of its branches")
    else:
        reason = _why_not_skipped(guider, denoiser) if name in _SKIPPING else None
    if reason is not None:
        raise AccelError(f"pipe.guider is a {name}, which cannot be followed: {reason}; {_remedy(name, family)}")
    branches = tuple(guider._input_predictions)
    return guidance if set(branches) == set(guidance.order) else replace(guidance, order=branches)


def _remedy(name: str, family: Family) -> str:
    if name in family.guiders:
        return "leave out whole blocks or feed-forwards, always, or use ClassifierFreeGuidance"
    return f"use {', '.join(family.guiders[:-1])} or {family.guiders[-1]}"


def _why_not_skipped(guider: Any, denoiser: nn.Module) -> str | None:
    """Why the branch with layers left out is not the same function of its inputs in all steps, or fails, or None."""
    for config in getattr(guider, _SKIPPING[type(guider).__name__]):
        if not math.isclose(config.dropout, 1.0):
            return f"with dropout={config.dropout} it drops outputs at random, in each step others"
        if config.skip_attention_scores or (config.skip_attention and not config.skip_ff):
            return _BY_PROCESSOR
        unknown = _unknown_to_diffusers(denoiser, config) if config.skip_attention else None
        if unknown is not None:
            return f"diffusers cannot leave out a whole {unknown}, only its feed-forwards (skip_attention=False)"
    if not _skips_alike(guider):
        return "in steps without classifier-free guidance it calls the branch with all layers"
    return None


def _unknown_to_diffusers(denoiser: nn.Module, config: Any) -> str | None:
    """The class of a block that diffusers has no description of, which it needs to leave one out."""
    stacks = (module for name, module in denoiser.named_children() if config.fqn in ("auto", name))
    blocks = {type(block) for stack in stacks if isinstance(stack, nn.ModuleList) for block in stack}
    for block in sorted(blocks, key=lambda found: found.__name__):
        try:
            TransformerBlockRegistry.get(block)
        except ValueError:
            return block.__name__
    return None


def _skips_alike(guider: Any) -> bool:
    """Whether skip-layer guidance has classifier-free guidance beside it in all of its steps.

    It counts the calls of a step and takes the third for its own, so that without the second it skips nothing.
    """
    if type(guider).__name__ != "SkipLayerGuidance" or math.isclose(guider.skip_layer_guidance_scale, 0.0):
        return True
    none = 0.0 if guider.use_original_formulation else 1.0
    return (
        not math.isclose(guider.guidance_scale, none)
        and guider._start <= guider.skip_layer_guidance_start
        and guider.skip_layer_guidance_stop <= guider._stop
    )
