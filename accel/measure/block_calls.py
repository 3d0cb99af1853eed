"""How many blocks a run really computed, whatever cache was on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from accel.measure.wrapped import wrapped
from accel.pipelines.sites import inspect_pipeline


class BlockCalls:
    """The count; `computed` grows with each block whose own forward runs."""

    def __init__(self) -> None:
        self.computed = 0

    def count(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls the forward of a block, and counts it."""
        self.computed += 1
        return forward(*args, **kwargs)


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
    with ExitStack() as stack:
        for denoiser in inspect_pipeline(pipe).denoisers:
            for site in denoiser.blocks:
                stack.enter_context(wrapped(site.module, "forward", calls.count))
        yield calls
