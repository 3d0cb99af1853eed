"""What a pipeline is made of, so that a test can say whether all of it came back."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Snapshot:
    """Attributes of every module, identity of every processor and parameter, class and attributes of the pipeline."""

    modules: dict[str, tuple[int, list[str]]]
    processors: dict[str, int]
    forwards: dict[str, Any]
    parameters: dict[str, tuple[int, int]]
    pipeline: tuple[type, list[str]]


def snapshot(pipe: Any) -> Snapshot:
    """Takes the snapshot; compare two with `==`."""
    modules, processors, forwards, parameters = {}, {}, {}, {}
    for name, component in pipe.components.items():
        if not isinstance(component, torch.nn.Module):
            continue
        for path, module in component.named_modules(prefix=name):
            modules[path] = (id(module), sorted(vars(module)))
            forwards[path] = (vars(module).get("forward"), vars(module).get("_compiled_call_impl"))
            if hasattr(module, "processor"):
                processors[path] = id(module.processor)
        for path, parameter in component.named_parameters(prefix=name):
            parameters[path] = (id(parameter), parameter._version)
    return Snapshot(modules, processors, forwards, parameters, (type(pipe), sorted(vars(pipe))))


def assert_copies(module: torch.nn.Module) -> None:
    """deepcopy and pickle give plain modules that stand on their own."""
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), _saved(module)):
        mine, theirs = module.state_dict(), twin.state_dict()
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert value.data_ptr() != theirs[name].data_ptr()
            assert torch.equal(value, theirs[name])
        assert not any(type(part).__module__.startswith("accel") for part in twin.modules())
        assert not any("_compiled_call_impl" in vars(part) for part in twin.modules())


def _saved(module: torch.nn.Module) -> torch.nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)
