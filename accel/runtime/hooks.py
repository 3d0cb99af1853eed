"""A hook that stands in front of one module's call and can be taken away again without a trace.

`nn.Module.__call__` looks for the instance attribute `_compiled_call_impl` first; `Module.compile()` puts its compiled
function there. The hook takes that place and passes the call on to what stood there, or to the module's ordinary call.
That is outside of everything else that people attach to a module (torch's forward hooks, diffusers' hook registry,
accelerate's offloading, LoRA layers), so that those can come and go in any order; a compiled block stays one graph,
because the hook runs before it; and `deepcopy` and `pickle` leave the attribute out, so that they give the plain
module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_SLOT = "_compiled_call_impl"

# An interceptor gets the rest of the chain, and the call's arguments, and returns the module's output.
Interceptor = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class CallHook:
    """The hook of one module; `owner` is the session that installed it."""

    def __init__(self, module: nn.Module, owner: object) -> None:
        self.owner = owner
        self._module = module
        # The outermost ones stand first.
        self._interceptors: list[tuple[int, Interceptor]] = []
        self._had_slot = _SLOT in vars(module)
        self._inner = vars(module).get(_SLOT)
        vars(module)[_SLOT] = self

    def add(self, interceptor: Interceptor, *, depth: int = 0) -> Callable[[], None]:
        """Puts an interceptor in front of the others of its depth and of greater ones; returns what takes it away, and
        does nothing the second time."""
        entry = depth, interceptor

        def undo() -> None:
            if entry in self._interceptors:
                self._interceptors.remove(entry)

        self._interceptors.insert(sum(other < depth for other, _ in self._interceptors), entry)
        return undo

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(0, args, kwargs)

    def _call(self, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if position == len(self._interceptors):
            inner = self._inner if self._inner is not None else self._module._call_impl
            return inner(*args, **kwargs)

        def proceed(*args: Any, **kwargs: Any) -> Any:
            return self._call(position + 1, args, kwargs)

        return self._interceptors[position][1](proceed, args, kwargs)

    @property
    def in_place(self) -> bool:
        """Whether calls of the module still come here."""
        return vars(self._module).get(_SLOT) is self

    def reinstall(self) -> None:
        """Goes in front of a function that was compiled since."""
        if not self.in_place:
            self._had_slot = _SLOT in vars(self._module)
            self._inner = vars(self._module).get(_SLOT)
            vars(self._module)[_SLOT] = self

    def remove(self) -> None:
        """Gives the module its former call back; what others have put there since stays."""
        if self.in_place:
            if self._had_slot:
                vars(self._module)[_SLOT] = self._inner
            else:
                del vars(self._module)[_SLOT]


def hook_of(module: nn.Module) -> CallHook | None:
    """The hook that stands in front of the module, if there is one."""
    found = vars(module).get(_SLOT)
    return found if isinstance(found, CallHook) else None


class HookSet:
    """The hooks of one session."""

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._hooks: dict[int, CallHook] = {}

    def add(
        self, module: nn.Module, interceptor: Interceptor, *, outermost: bool = False, innermost: bool = False
    ) -> Callable[[], None]:
        """Adds an interceptor to the module's hook, made when it is the first.

        One that is `outermost` stays in front of those that others add, whoever comes first: it is called also where
        one of them does not go on to the module, and they see the arguments and the output as it wants them. One that
        is `innermost` stays behind them: it is called where the module is, and after they have said what they want.
        """
        hook = self._hooks.get(id(module))
        if hook is None:
            hook = self._hooks[id(module)] = CallHook(module, self._owner)
        return hook.add(interceptor, depth=innermost - outermost)

    def lost(self) -> list[nn.Module]:
        """Modules that were compiled since, so that their calls no longer come here."""
        return [hook._module for hook in self._hooks.values() if not hook.in_place]

    def reinstall(self, module: nn.Module) -> None:
        """Puts the hook of the module back in front."""
        self._hooks[id(module)].reinstall()

    def remove(self) -> None:
        """Takes all hooks away."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
