"""A method of one instance, wrapped for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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
