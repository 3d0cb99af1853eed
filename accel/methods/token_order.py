"""Image tokens that are tiled once per forward: brought into order before the first block, and back behind the last.

All blocks then work on tokens in the tiled order, so that no attention has to permute its own. What else goes with the
tokens, such as the tables of their rotation, is permuted with them; the facts of a family name it. The interceptors
stand outside of those that may reuse a block instead of computing it, so that the order does not depend on which blocks
are computed; what others keep from call to call is told the order through the board.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accel.errors import AccelError
from accel.kernels.arrangement import Arrangement, arrange
from accel.methods.base import Context
from accel.pipelines.attention import AttentionCall, spread_over_devices
from accel.pipelines.facts import FreeOrder, TokenArgument
from accel.pipelines.sites import BlockSite, Denoiser
from accel.runtime.board import TokenOrder
from accel.runtime.clock import Moment

_STREAM = "hidden_states"


@dataclass
class _Forward:
    """One call of a denoiser whose tokens are to be reordered."""

    moment: Moment
    order: Arrangement | None = None
    # What blocks were given last under a name, and the same in order.
    moved: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    last: Tensor | None = None
    version: int = 0


class ForwardOrder:
    """Gives the blocks of one pipeline their image tokens in tiled order, in the calls where that can be.

    Args:
        name, context: of the method.
        block_size: tokens of a block.
        wanted: whether a block at this depth will have use for the order at that moment; a call in which none has keeps
            the model's order, and with it the plain bits.
    """

    def __init__(self, name: str, context: Context, block_size: int, wanted: Callable[[Moment, int], bool]) -> None:
        self._name = name
        self._context = context
        self._block_size = block_size
        self._wanted = wanted
        self._forward: _Forward | None = None

    def install(self) -> list[Callable[[], None]]:
        """Hooks every denoiser and its blocks, on a family whose order is free; returns the undo."""
        facts = self._context.facts
        assert facts.family.free_order is not None
        undo = []
        for denoiser in facts.denoisers:
            around = partial(self._in_denoiser, denoiser, facts.family.free_order)
            undo.append(self._context.hooks.add(denoiser.module, around))
            for site in denoiser.blocks:
                last = site is denoiser.blocks[-1]
                around = partial(self._in_block, site, facts.family.free_order, last)
                undo.append(self._context.hooks.add(site.module, around, outermost=True))
        return undo

    def _in_denoiser(
        self,
        denoiser: Denoiser,
        free: FreeOrder,
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        moment = self._context.clock.now
        if moment is None or not self._has_use(denoiser, moment):
            return proceed(*args, **kwargs)
        bound = self._bound(denoiser, free, args, kwargs)
        if bound is not None:
            self._context.recorder.fallback(self._name, f"{bound}: tokens are tiled per call")
            return proceed(*args, **kwargs)
        self._forward = _Forward(moment)
        try:
            return proceed(*args, **kwargs)
        finally:
            self._forward = None

    def _has_use(self, denoiser: Denoiser, moment: Moment) -> bool:
        enough = moment.grid is not None and math.prod(moment.grid) >= 2 * self._block_size
        return enough and any(self._wanted(moment, site.depth) for site in denoiser.blocks)

    def _bound(self, denoiser: Denoiser, free: FreeOrder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Why this call needs the model's order, or None."""
        if spread_over_devices(getattr(denoiser.module, "_parallel_config", None)):
            return "context parallelism spreads the tokens over devices"
        timestep = denoiser.argument("timestep", args, kwargs)
        if self._context.facts.family.per_token_timesteps and isinstance(timestep, Tensor) and timestep.ndim > 1:
            return "every token has a timestep of its own"
        given = (why for name, why in free.unless_given.items() if denoiser.argument(name, args, kwargs) is not None)
        return next(given, None)

    def _in_block(
        self,
        site: BlockSite,
        free: FreeOrder,
        last: bool,
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        forward = self._forward
        if forward is None or forward.moment is not self._context.clock.now:
            return proceed(*args, **kwargs)
        stream = site.argument(_STREAM, args, kwargs)
        if site.index == 0:
            self._begin(forward, stream)
        order = forward.order
        if order is None:
            return proceed(*args, **kwargs)
        if site.index == 0:
            args, kwargs = site.with_argument(_STREAM, order.apply(stream), args, kwargs)
        elif stream is not forward.last or forward.version != _version(stream):
            raise AccelError(
                f"{self._name}: something changed the tokens in front of {site.denoiser}.{site.path}, where they are "
                "tiled for the whole forward: use tiling='call'"
            )
        for argument in free.arguments:
            value = site.argument(argument.name, args, kwargs)
            if value is not None:
                moved = self._moved(forward, order, argument, value)
                args, kwargs = site.with_argument(argument.name, moved, args, kwargs)
        streams = list(site.unpack(proceed(*args, **kwargs), site.streams(args, kwargs)))
        place = site.stack.streams.index(_STREAM)
        if last:
            streams[place] = order.restore(streams[place])
            self._forward = None
        else:
            forward.last, forward.version = streams[place], _version(streams[place])
        return site.pack(tuple(streams))

    def _begin(self, forward: _Forward, stream: Tensor) -> None:
        grid = forward.moment.grid
        # Tokens that are not the grid's stay as they are; the attentions say so of each of their calls.
        if grid is None or stream.shape[1] != math.prod(grid):
            return
        order = arrange(grid, block_size=self._block_size, device=stream.device)
        if not order.identity:
            forward.order = self._context.board.order = order
            self._context.recorder.figure(self._name, "tiled_forward", torch.ones(1, device="cpu"))

    def _moved(self, forward: _Forward, order: Arrangement, argument: TokenArgument, value: Any) -> Any:
        """An argument of the blocks in order; a parent gives all of them the same object."""
        known = forward.moved.get(argument.name)
        if known is None or known[0] is not value:
            prefix = argument.with_text and self._context.facts.family.text == "prefix"
            parts = value if isinstance(value, tuple) else (value,)
            number = 1 if argument.first_alone else len(parts)
            ordered = (_in_order(part, order.gather, argument.axis, prefix) for part in parts[:number])
            moved = (*ordered, *parts[number:])
            known = forward.moved[argument.name] = value, moved if isinstance(value, tuple) else moved[0]
        return known[1]


def dense_in_the_models_order(
    order: TokenOrder, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall
) -> Tensor:
    """Diffusers' own attention of reordered tokens, (B, S, H, D). A mask is made for the model's order."""
    if call.mask is None:
        return call.dense(query, key, value)

    def in_image(change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        start = x.shape[1] - order.length if call.text == "prefix" else 0
        text_before, image, text_behind = x.tensor_split((start, start + order.length), 1)
        return torch.cat([text_before, change(image), text_behind], 1)

    query, key, value = (in_image(order.restore, tensor) for tensor in (query, key, value))
    return in_image(order.apply, call.dense(query, key, value))


def _in_order(x: Tensor, gather: Tensor, axis: int, text_first: bool) -> Tensor:
    """A tensor with its image tokens in order and those of the text where they are."""
    start = x.shape[axis] - len(gather) if text_first else 0
    text_before, image, text_behind = x.tensor_split((start, start + len(gather)), axis)
    image = image.index_select(axis, gather.to(x.device))
    return image if image.shape == x.shape else torch.cat([text_before, image, text_behind], axis)


def _version(tensor: Any) -> int:
    # Tensors made in inference mode cannot be followed; there the object alone tells.
    return 0 if tensor.is_inference() else tensor._version
