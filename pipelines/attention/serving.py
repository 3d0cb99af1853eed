"""One `attend` for all sites, which a hook in front of each block replaces for the time of that block.

The hook knows what a processor cannot: the block, the step, the grid. A context variable carries it to the attention
inside, eager or compiled, also where two threads run two pipelines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from torch import Tensor

from accel.pipelines.attention.call import Attend, AttentionCall
from accel.pipelines.sites import TEXT_STREAM, BlockSite

_SERVING: ContextVar[tuple[Attend, int | None, Tensor | None, Any] | None] = ContextVar("accel_attend", default=None)


@contextmanager
def serve(
    attend: Attend, text_length: int | None = None, counting: Tensor | None = None, given_mask: Any = None
) -> Iterator[None]:
    """Gives the attentions that run inside to `attend`; `text_length` is for those whose call does not tell it,
    `counting` and `given_mask`, as in `AttentionCall`, for those that have a mask."""
    token = _SERVING.set((attend, text_length, counting, given_mask))
    try:
        yield
    finally:
        _SERVING.reset(token)


def served(query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
    """The `attend` of the innermost `serve`, or diffusers' own attention outside of any."""
    serving = _SERVING.get()
    if serving is None:
        return call.dense(query, key, value)
    attend, text_length, counting, given_mask = serving
    told: dict[str, Any] = {"given_mask": given_mask}
    # Of tokens that are spread over processes, the block does not know how many of its own are text.
    if call.text_length is None and not call.spread:
        told["text_length"] = text_length
    if call.mask is not None and counting is not None:
        told["counting"] = counting
    return attend(query, key, value, replace(call, **told))


def counting(site: BlockSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Which tokens count in one call of the block, where it makes a mask that is added to the scores of them."""
    names = (fact.added for fact in site.attention if fact.added is not None)
    return next((site.argument(name, args, kwargs) for name in names), None)


def given_mask(site: BlockSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What one call of the block is given for the mask of its attention among the tokens of the image or video."""
    # A hook of somebody else's may give this block another one than its neighbours get.
    if site.module._forward_pre_hooks:
        return None
    names = (fact.mask for fact in site.attention if fact.among_tokens and fact.mask is not None)
    return next((site.argument(name, args, kwargs) for name in names), None)


def text_length(
    site: BlockSite, args: tuple[Any, ...], kwargs: dict[str, Any], grid: tuple[int, int, int] | None
) -> int | None:
    """Tokens of text in one call of the block.

    They are a stream of their own, or in the stream of the image whatever its grid leaves; None where it is not known.
    """
    streams = dict(zip(site.stack.streams, site.streams(args, kwargs), strict=True))
    if site.stack.joined:
        left = None if grid is None else streams["hidden_states"].shape[1] - math.prod(grid)
        return None if left is None or left < 0 else left
    text = streams.get(TEXT_STREAM)
    return 0 if text is None else text.shape[1]
