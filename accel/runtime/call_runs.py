"""Where a run begins and ends in a pipeline that makes no progress bar of its own: in the call of the pipeline.

Python looks a call up on the class and never on the instance. So, for as long as it is watched, the pipeline is of a
class of its own, derived from its class and named like it, whose call also says when it is over, whether it returns or
raises. Nothing else is of that class: making another pipeline from it, and copying this one, gives the plain class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from accel.pipelines.facts import CallMarks
from accel.runtime.runs import InstanceMethod


class _Run:
    """How far the pipeline's call has come."""

    inside = False
    on = False


def watch_calls(
    pipe: Any,
    marks: CallMarks,
    on_start: Callable[[int], None],
    on_end: Callable[[bool], None],
    owner: object = None,
) -> Callable[[], None]:
    """Calls `on_start(model evaluations per branch and chunk)` where the pipeline comes to the method that `marks`
    name, and `on_end(broken off by an exception)` at the end of its call.

    Returns what stops the watching.
    """
    plain: Any = type(pipe)
    run = _Run()

    def start(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if run.inside and not run.on:  # The user may call it by hand.
            run.on = True
            on_start(int(getattr(pipe, marks.steps)))
        return result

    @functools.wraps(plain.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        run.inside, broken = True, True
        try:
            result = plain.__call__(self, *args, **kwargs)
            broken = False
        finally:
            on, run.inside, run.on = run.on, False, False
            if on:
                on_end(broken)
        return result

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        make, (_, *arguments), *state = plain.__reduce_ex__(self, protocol)
        return _remade, (make, plain, *arguments), *state

    described = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    own = type(plain.__name__, (plain,), {**described, "__call__": call, "__new__": new, "__reduce_ex__": reduce})
    started = InstanceMethod(pipe, marks.start, start, owner)
    object.__setattr__(pipe, "__class__", own)

    def undo() -> None:
        run.on = False
        if type(pipe) is own:
            object.__setattr__(pipe, "__class__", plain)
        started.remove()

    return undo


def _remade(make: Callable[..., Any], *arguments: Any) -> Any:
    return make(*arguments)
