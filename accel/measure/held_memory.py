"""How much memory the tensors take that hang on some objects: what another library's cache holds."""

from __future__ import annotations

from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

_CLOSED = (nn.Module, type, ModuleType, FunctionType, MethodType, str, bytes)


def held_bytes(*roots: Any) -> int:
    """Bytes of the storages of all tensors that can be reached from the objects, each storage once.

    Follows attributes, dictionaries, lists, tuples and sets, but neither modules (their parameters are the model's)
    nor functions.
    """
    storages: dict[int, int] = {}
    seen: set[int] = set()
    pending = list(roots)
    while pending:
        found = pending.pop()
        if id(found) in seen or isinstance(found, _CLOSED):
            continue
        seen.add(id(found))
        if isinstance(found, torch.Tensor):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(found, dict):
            pending.extend(found.values())
        elif isinstance(found, list | tuple | set | frozenset):
            pending.extend(found)
        elif hasattr(found, "__dict__"):
            pending.extend(vars(found).values())
    return sum(storages.values())
