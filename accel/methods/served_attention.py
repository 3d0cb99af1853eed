"""The attentions of a pipeline's blocks handed to one method, with the moment and the block of every call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from accel.errors import AccelWarning
from accel.methods.base import Context
from accel.pipelines.attention import (
    AttentionCall,
    counting,
    find_attention,
    given_mask,
    processor_for,
    serve,
    text_length,
)
from accel.pipelines.sites import BlockSite
from accel.runtime.clock import Moment

# As `accel.pipelines.attention.Attend`, behind the moment and the block of the call.
Attend = Callable[[Moment, BlockSite, Tensor, Tensor, Tensor, AttentionCall], Tensor]


class ServedAttention:
    """Stand-ins in all attentions and a hook in front of every block.

    Raises `AccelError`, when it is made, where an attention cannot be taken over.
    """

    def __init__(self, context: Context, attend: Attend) -> None:
        self._context = context
        self._attend = attend
        sites = [site for denoiser in context.facts.denoisers for site in find_attention(denoiser)]
        self._stand_ins = [(site, processor_for(site)) for site in sites]

    def install(self) -> list[Callable[[], None]]:
        """Puts all in place; returns the undo."""
        return [site.replace(processor) for site, processor in self._stand_ins] + [
            self._context.hooks.add(site.module, partial(self._in_block, site))
            for denoiser in self._context.facts.denoisers
            for site in (*denoiser.blocks, *denoiser.beside)
        ]

    def start_run(self) -> None:
        """Warns, and notes, where attentions run plainly because they got another processor since."""
        gone = [site.path for site, processor in self._stand_ins if site.module.processor is not processor]
        if gone:
            text = (
                f"{len(gone)} attentions, first {gone[0]}, got another processor after enable and run plainly: "
                "call accel.disable(pipe) and enable again"
            )
            self._context.recorder.note(text)
            warnings.warn(text, AccelWarning, stacklevel=2)

    def _in_block(
        self, site: BlockSite, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        moment = self._context.clock.now
        if moment is None:
            return proceed(*args, **kwargs)
        words, marks = text_length(site, args, kwargs, moment.grid), counting(site, args, kwargs)
        with serve(partial(self._attend, moment, site), words, marks, given_mask(site, args, kwargs)):
            return proceed(*args, **kwargs)
