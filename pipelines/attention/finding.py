"""From facts to the attention modules of one denoiser, and from a module to the processor that stands in there."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from accel.errors import AccelError
from accel.pipelines.attention.anyflow_far import AnyFlowChunkAttention
from accel.pipelines.attention.call import Attend, spread_over_devices
from accel.pipelines.attention.cogvideox import CogVideoXJointAttention
from accel.pipelines.attention.cogview4 import CogView4JointAttention
from accel.pipelines.attention.cosmos import CosmosSelfAttention
from accel.pipelines.attention.flux import FluxJointAttention
from accel.pipelines.attention.flux2 import Flux2JointAttention, Flux2ParallelAttention
from accel.pipelines.attention.hidream import HiDreamJointAttention
from accel.pipelines.attention.hunyuan_video import (
    HunyuanVideo15JointAttention,
    HunyuanVideoJointAttention,
    MotifVideoJointAttention,
)
from accel.pipelines.attention.ltx import LTXSelfAttention
from accel.pipelines.attention.ltx2 import LTX2PerturbedSelfAttention, LTX2SelfAttention
from accel.pipelines.attention.lumina2 import Lumina2JointAttention
from accel.pipelines.attention.mochi import MochiJointAttention
from accel.pipelines.attention.plain import PlainSelfAttention
from accel.pipelines.attention.qwenimage import QwenImageJointAttention
from accel.pipelines.attention.sd3 import SD3JointAttention
from accel.pipelines.attention.serving import served
from accel.pipelines.attention.stand_in import StandIn
from accel.pipelines.attention.wan import WanSelfAttention
from accel.pipelines.attention.z_image import ZImageJointAttention
from accel.pipelines.context_parallel import why_not_by_heads
from accel.pipelines.facts import AttentionSite
from accel.pipelines.sites import BlockSite, Denoiser

_FORMS: dict[str, type[StandIn]] = {
    original: form
    for form in (
        WanSelfAttention,
        FluxJointAttention,
        HunyuanVideoJointAttention,
        HunyuanVideo15JointAttention,
        MotifVideoJointAttention,
        MochiJointAttention,
        CogVideoXJointAttention,
        CogView4JointAttention,
        Lumina2JointAttention,
        ZImageJointAttention,
        HiDreamJointAttention,
        CosmosSelfAttention,
        LTXSelfAttention,
        LTX2SelfAttention,
        LTX2PerturbedSelfAttention,
        PlainSelfAttention,
        SD3JointAttention,
        Flux2JointAttention,
        Flux2ParallelAttention,
        QwenImageJointAttention,
        AnyFlowChunkAttention,
    )
    for original in form.originals
}


@dataclass(frozen=True)
class AttentionModuleSite:
    """One attention module: the block it stands in, its path in the denoiser, and what the facts say of it.

    `layer`: as in `AttentionCall`.
    """

    denoiser: str
    block: BlockSite
    path: str
    module: nn.Module
    fact: AttentionSite
    layer: int

    def replace(self, processor: StandIn) -> Callable[[], None]:
        """Puts the processor into the module; returns what puts the former one back, unless a third is there by then.

        It sets the attribute and nothing else: `set_processor` of diffusers may unregister modules.
        """
        module: Any = self.module
        before = module.processor
        module.processor = processor

        def undo() -> None:
            if module.processor is processor:
                module.processor = before
            processor.retire()

        return undo


def find_attention(denoiser: Denoiser) -> list[AttentionModuleSite]:
    """The attentions of all blocks, the main path first, in the order of the blocks.

    Those to a text, and of a stream that is none of the image or video, are left out.

    Raises `AccelError` where a module's processor is none that a form of this package computes as.
    """
    blocks = (*denoiser.blocks, *denoiser.beside)
    further = itertools.count(len(blocks))
    sites = []
    for block in blocks:
        for place, fact in enumerate(fact for fact in block.attention if fact.among_tokens):
            module = block.module.get_submodule(fact.path)
            layer = block.index if place == 0 else next(further)
            sites.append(AttentionModuleSite(denoiser.name, block, f"{block.path}.{fact.path}", module, fact, layer))
    for site in sites:
        _form(site)
    return sites


def processor_for(site: AttentionModuleSite, attend: Attend = served) -> StandIn:
    """The processor that stands in for the module's own and gives its attention to `attend`.

    Raises `AccelError` as `find_attention` does.
    """
    return _form(site)(site.module.processor, attend, site.layer)


def _form(site: AttentionModuleSite) -> type[StandIn]:
    processor = site.module.processor
    name = f"{site.denoiser}.{site.path}"
    found = type(processor)
    form = _FORMS.get(f"{found.__module__}:{found.__qualname__}")
    if form is None:
        module, own = f"pipe.{site.denoiser}.get_submodule({site.path!r})", site.fact.processor
        remedy = f"give it back, with {module}.set_processor({own}())"
        if "IPAdapter" in found.__name__:
            remedy = "unload the IP-adapter first, with pipe.unload_ip_adapter()"
        raise AccelError(
            f"{name} has the processor {found.__name__}, whose attention Accel cannot take over; "
            f"it takes over {own}: {remedy}"
        )
    parallel, heads = getattr(processor, "_parallel_config", None), getattr(site.module, "heads", 0)
    reason = why_not_by_heads(parallel, heads) if spread_over_devices(parallel) else None
    if reason is not None:
        raise AccelError(
            f"{name} has its tokens spread over devices by context parallelism, and attention methods need all of "
            f"them: {reason}"
        )
    reason = form.refusal(site.module)
    if reason is not None:
        raise AccelError(f"the attention of {name} cannot be taken over: {reason}")
    return form
