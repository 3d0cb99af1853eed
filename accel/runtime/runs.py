"""Where a run begins and ends: the pipeline's progress bar, and the branch that it names.

Every denoising loop of diffusers makes its bar with `pipe.progress_bar` after the timesteps are set, and closes it when
the loop ends, also when it ends by an exception. Both wrappers below are attributes of the instance. Copies of the
pipeline or the model get the plain method back, because copying a wrapper copies what it wraps.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from accel.runtime.clock import Clock


class InstanceMethod:
    """Replaces a method of one instance by a call of `wrapper(original, *args, **kwargs)`, until `remove`.

    `owner` is the session that installed it.
    """

    def __init__(self, instance: object, name: str, wrapper: Callable[..., Any], owner: object = None) -> None:
        self.owner = owner
        self._instance = instance
        self._name = name
        self._wrapper = wrapper
        self._removed = False
        self._had = name in vars(instance)
        self._original = getattr(instance, name)
        vars(instance)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._removed:  # Somebody wrapped or copied it while it stood there.
            return self._original(*args, **kwargs)
        return self._wrapper(self._original, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._instance, self._name)

    def remove(self) -> None:
        """Gives the instance its own method back; what others have put there since stays."""
        self._removed = True
        if vars(self._instance).get(self._name) is self:
            if self._had:
                vars(self._instance)[self._name] = self._original
            else:
                del vars(self._instance)[self._name]


class _Bar:
    """The pipeline's own bar, which also says when the loop under it ends.

    A proxy, because a bar need not be tqdm's: it may lack `close`, or refuse another one. And tqdm's is closed a second
    time when it is collected, perhaps in the middle of the next run.
    """

    def __init__(self, bar: Any, on_end: Callable[[], None]) -> None:
        self._bar = bar
        self._on_end = on_end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)

    def __enter__(self) -> Any:
        self._bar.__enter__()
        return self

    def __exit__(self, *exception: Any) -> Any:
        try:
            self._on_end()
        finally:
            suppressed = self._bar.__exit__(*exception)
        return suppressed

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._bar
        finally:
            self._on_end()

    def close(self) -> None:
        """Closes the bar."""
        try:
            self._on_end()
        finally:
            self._bar.close()


def watch_runs(
    pipe: Any, on_start: Callable[[int], None], on_end: Callable[[bool], None], owner: object = None
) -> Callable[[], None]:
    """Calls `on_start(model evaluations per branch)` and `on_end(broken off by an exception)` around each loop.

    Returns what stops the watching.
    """
    current: object | None = None

    def finish(loop: object | None, before: BaseException | None) -> None:
        # Only the loop that is on may end the run; a bar may be closed twice.
        nonlocal current
        if loop is current and current is not None:
            current = None
            raised = sys.exc_info()[1]
            on_end(raised is not None and raised is not before)

    def progress_bar(original: Callable[..., Any], iterable: Any = None, total: int | None = None) -> Any:
        nonlocal current
        # The caller may be handling an exception of its own, which is none of the loop's.
        before = sys.exc_info()[1]
        if iterable is None:
            bar = original(total=total)
            count = _evaluations(pipe, total or 0)
        else:
            bar = original(iterable)
            if not hasattr(iterable, "__len__"):
                return bar  # A schedule needs the number of steps; without it the loop is none of ours.
            count = len(iterable)
        finish(current, before)
        current = loop = object()
        try:
            on_start(count)
        except BaseException:
            finish(loop, before)
            raise
        return _Bar(bar, lambda: finish(loop, before))

    return InstanceMethod(pipe, "progress_bar", progress_bar, owner).remove


def watch_whole_calls(pipe: Any, on_begin: Callable[[], None], on_end: Callable[[], None]) -> Callable[[], None]:
    """Calls `on_begin` where the pipeline checks its arguments, with which its call begins, and `on_end` where it lets
    go of its models, with which its call is over; nothing where the pipeline lacks one of the two.

    Returns what stops the watching.
    """
    if not (hasattr(pipe, "check_inputs") and hasattr(pipe, "maybe_free_model_hooks")):
        return lambda: None

    # The exception that the caller handles where a call begins; its id alone, since it keeps all that its frames hold.
    before = id(None)

    def begin(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal before
        before = id(sys.exc_info()[1])
        on_begin()
        return original(*args, **kwargs)

    def end(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        # Whoever cleans up after a call that failed is not at the end of it.
        if id(sys.exc_info()[1]) in (id(None), before):
            on_end()
        return result

    watched = [InstanceMethod(pipe, "check_inputs", begin), InstanceMethod(pipe, "maybe_free_model_hooks", end)]

    def undo() -> None:
        for method in watched:
            method.remove()

    return undo


def watcher_of(pipe: Any) -> object | None:
    """The session that watches the pipeline's runs, if there is one."""
    for found in getattr(pipe, "__dict__", {}).values():
        while isinstance(found, InstanceMethod) and found.owner is None:
            found = found._original
        if isinstance(found, InstanceMethod):
            return found.owner
    return None


def watch_branches(module: nn.Module, clock: Clock) -> Callable[[], None]:
    """Tells the clock the branch that a pipeline names through `module.cache_context`; returns the undo."""
    if not hasattr(module, "cache_context"):
        return lambda: None

    @contextlib.contextmanager
    def cache_context(original: Callable[..., Any], name: str, **kwargs: Any) -> Iterator[None]:
        with clock.branch(name), original(name, **kwargs):
            yield

    return InstanceMethod(module, "cache_context", cache_context).remove


def _evaluations(pipe: Any, steps: int) -> int:
    # Second-order schedulers evaluate the model `order` times in each step but the last.
    order = getattr(getattr(pipe, "scheduler", None), "order", 1)
    return max(0, steps * order - (order - 1))
