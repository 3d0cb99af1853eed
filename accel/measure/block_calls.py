"""How many blocks a run really computed, whatever cache was on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from accel.pipelines.sites import inspect_pipeline


class BlockCalls:
    """The count; `computed` grows with each block whose own forward runs."""

    def __init__(self) -> None:
        self.computed = 0

    def of(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of a block, counted."""

        @functools.wraps(forward)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.computed += 1
            return forward(*args, **kwargs)

        return counted


@contextmanager
def count_block_calls(pipe: Any) -> Iterator[BlockCalls]:
    """Counts the blocks that the pipeline's denoisers compute.

    A cache may stand in front of a module's call or take the place of its `forward`, so that torch's hooks fire for
    calls that compute nothing; therefore the block's own `forward` is counted, below all of them. What is put on the
    pipeline within must be taken off within.

    Raises:
        AccelError: a pipeline of no known family.
    """
    calls = BlockCalls()
    blocks: list[nn.Module] = [site.module for one in inspect_pipeline(pipe).denoisers for site in one.blocks]
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        vars(block)["forward"] = calls.of(block.forward)
    try:
        yield calls
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = forward
