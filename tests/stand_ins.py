"""Pipelines whose attentions are stood in for, and a spy in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor

from accel.pipelines.attention import (
    Attend,
    AttentionCall,
    AttentionModuleSite,
    find_attention,
    processor_for,
    serve,
    served,
    text_length,
)
from accel.pipelines.sites import BlockSite, Denoiser, inspect_pipeline, token_grid
from accel.runtime.hooks import HookSet
from tests.tiny_pipelines import TINY, TinyCase

# One pipeline for each form of attention.
FORMS = [
    *("cogvideox", "cogview4", "cosmos2_v2w", "dit", "flux", "flux2", "hidream", "hunyuan_video", "hunyuan_video15"),
    *("ltx", "ltx2", "lumina2", "mochi", "motif_video", "qwenimage", "sd3_heun", "wan", "z_image"),
]


@cache
def built(name: str) -> tuple[Any, Tensor]:
    """The pipeline, and what it gives in two steps; a test gives it back as it found it."""
    pipe = TINY[name].build()
    return pipe, short(TINY[name], pipe)


def short(case: TinyCase, pipe: Any, **overrides: Any) -> Tensor:
    return case.run(pipe, **{"num_inference_steps": 2, **overrides})


def attention(pipe: Any) -> list[AttentionModuleSite]:
    return [site for denoiser in inspect_pipeline(pipe).denoisers for site in find_attention(denoiser)]


@contextmanager
def standing_in(pipe: Any, attend: Attend = served) -> Iterator[list[Any]]:
    sites = attention(pipe)
    undo = [site.replace(processor_for(site, attend)) for site in sites]
    try:
        yield [site.module.processor for site in sites]
    finally:
        for step in undo:
            step()


class Spy:
    """Diffusers' own attention, with a note of every call."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        assert query.shape == key.shape == value.shape
        self.calls.append(call)
        self.shapes.append(tuple(query.shape))
        return call.dense(query, key, value)


@contextmanager
def serving_blocks(pipe: Any, attend: Callable[[BlockSite], Attend]) -> Iterator[None]:
    """What a method does: stand-ins in all attentions, and a hook in front of every block that serves it."""
    hooks = HookSet(object())
    facts = inspect_pipeline(pipe)
    grids: list[Any] = []
    for denoiser in facts.denoisers:

        def in_denoiser(proceed: Any, args: tuple, kwargs: dict, denoiser: Denoiser = denoiser) -> Any:
            grids.append(token_grid(facts.family.grid, denoiser, args, kwargs))
            return proceed(*args, **kwargs)

        hooks.add(denoiser.module, in_denoiser)
        for site in (*denoiser.blocks, *denoiser.beside):

            def intercept(proceed: Any, args: tuple, kwargs: dict, site: BlockSite = site) -> Any:
                with serve(attend(site), text_length(site, args, kwargs, grids[-1])):
                    return proceed(*args, **kwargs)

            hooks.add(site.module, intercept)
    try:
        with standing_in(pipe):
            yield
    finally:
        hooks.remove()
