"""The attributes of a pipeline and its denoisers, to see what another library left there and to put it back."""

from __future__ import annotations

from typing import Any

from accel.pipelines.sites import inspect_pipeline


class Snapshot:
    """The attributes of a pipeline, its class, and every module and processor of its denoisers, as they are now.

    A pipeline sets attributes of its own in its first call: take the snapshot after it has run.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._class = dict(vars(type(pipe)))
        self._own = dict(vars(pipe))
        modules = [module for one in inspect_pipeline(pipe).denoisers for module in one.module.modules()]
        processors = {id(one): one for module in modules if hasattr(one := vars(module).get("processor"), "__dict__")}
        self._objects: list[tuple[object, dict[str, Any]]] = [
            (one, _copied(one)) for one in (*modules, *processors.values())
        ]

    def restore(self) -> list[str]:
        """Puts all back and returns the names of the attributes that differed, sorted."""
        return sorted({*self._restore_pipeline(), *self._restore_objects()})

    def _restore_pipeline(self) -> list[str]:
        left = []
        kind = type(self._pipe)
        for name, value in list(vars(kind).items()):
            if name not in self._class:
                delattr(kind, name)
            elif value is not self._class[name]:
                setattr(kind, name, self._class[name])
            else:
                continue
            left.append(f"{kind.__name__}.{name}")
        # Its values change in every run.
        for name in [name for name in vars(self._pipe) if name not in self._own]:
            delattr(self._pipe, name)
            left.append(name)
        return left

    def _restore_objects(self) -> list[str]:
        left = []
        for one, before in self._objects:
            now = vars(one)
            for name in [*now, *(name for name in before if name not in now)]:
                if name in now and name in before and _same(now[name], before[name]):
                    continue
                left.append(name)
                if name not in before:
                    del now[name]
                elif isinstance(now.get(name), dict):
                    now[name].clear()
                    now[name].update(before[name])
                else:
                    now[name] = before[name]
        return left


def _copied(one: object) -> dict[str, Any]:
    # Submodules, parameters and hooks are in dictionaries, which change in place.
    return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(one).items()}


def _same(now: Any, before: Any) -> bool:
    if isinstance(now, dict) and isinstance(before, dict):
        return list(now) == list(before) and all(now[key] is before[key] for key in now)
    return now is before
