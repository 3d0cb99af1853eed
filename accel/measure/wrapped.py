"""A method of one instance, or the whole call of a module, wrapped for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from accel.runtime.hooks import hook_of


@contextmanager
def called(module: nn.Module, around: Callable[..., Any]) -> Iterator[None]:
    """Calls `around(original, *args, **kwargs)` in place of the whole call of a module within the block.

    Where a session's hook stands in front of the module that is outside of the hook, with all that methods do there;
    elsewhere it is the module's `forward`.
    """
    hook = hook_of(module)
    if hook is None:
        with wrapped(module, "forward", around):
            yield
        return
    # Of the outermost the one that came last is the first.
    undo = hook.add(lambda proceed, args, kwargs: around(proceed, *args, **kwargs), depth=-1)
    try:
        yield
    finally:
        undo()


@contextmanager
def wrapped(instance: object, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Calls `around(original, *args, **kwargs)` in place of `instance.name(*args, **kwargs)` within the block.

    The signature stays, since pipelines look at it. What others have put in its place when the block ends stays there:
    an offload that renews its hooks with every call, or takes one off after the first, takes this off with them.
    """
    own = vars(instance)
    had, original = name in own, getattr(instance, name)

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    before = own.get(name)
    own[name] = method
    try:
        yield
    finally:
        if own.get(name) is method:
            if had:
                own[name] = before
            else:
                del own[name]
