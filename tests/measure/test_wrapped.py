"""A method that is wrapped for a while comes off without a trace, also where others change hooks meanwhile."""

import inspect

import pytest
import torch
from accelerate import cpu_offload_with_hook
from torch import nn

from accel.measure.wrapped import called, wrapped
from accel.runtime.hooks import HookSet


def counted(calls):
    def around(original, *args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    return around


def test_it_comes_off_without_a_trace_also_after_an_exception():
    module, calls = nn.Linear(2, 2), []
    before = dict(vars(module))
    with pytest.raises(ZeroDivisionError), wrapped(module, "forward", counted(calls)):
        assert list(inspect.signature(module.forward).parameters) == ["input"]
        module(torch.ones(2))
        raise ZeroDivisionError
    assert calls == [1] and vars(module) == before


def test_hooks_that_are_renewed_within_stay():
    module, calls = nn.Linear(2, 2), []
    _, hook = cpu_offload_with_hook(module, "cpu")
    with wrapped(module, "forward", counted(calls)):
        module(torch.ones(2))
        hook.remove()  # As a pipeline with model offload does at the end of each call, and puts on new ones.
        _, hook = cpu_offload_with_hook(module, "cpu")
        renewed = module.forward
    assert module.forward is renewed
    module(torch.ones(2))
    hook.remove()
    assert calls == [1] and not hasattr(module, "_old_forward")


@pytest.mark.parametrize("on", [True, False])
def test_a_whole_call_is_wrapped_outside_of_what_a_session_puts_around_it(on):
    module, hooks, seen = nn.Linear(2, 2), HookSet(object()), []

    def said(name):
        def interceptor(proceed, args, kwargs):
            seen.append(name)
            return proceed(*args, **kwargs)

        return interceptor

    def around(original, *args, **kwargs):
        seen.append("around")
        return original(*args, **kwargs)

    if on:
        hooks.add(module, said("outermost"), outermost=True)
        hooks.add(module, said("method"))
    before = dict(vars(module))
    with called(module, around):
        module(torch.zeros(1, 2))
    assert seen == ["around", *(["outermost", "method"] if on else [])]
    module(torch.zeros(1, 2))
    assert seen.count("around") == 1 and vars(module) == before
