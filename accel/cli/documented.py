"""What the methods' docstrings say of them, for a person who chooses."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel.methods.base import MethodConfig, Registered


def about(entry: Registered) -> dict[str, Any]:
    """A method's keyword, its slot, the first line about it, and what it needs."""
    return {
        "keyword": entry.config.keyword,
        "slot": entry.method.slot,
        "summary": (inspect.getdoc(inspect.getmodule(entry.method)) or "").partition("\n")[0].strip(),
        "needs": entry.method.needs.in_words(),
    }


def meanings(config: type[MethodConfig]) -> dict[str, str]:
    """Per setting the first sentence of its entry in the docstring of the class or of a base."""
    documented: dict[str, str] = {}
    for base in reversed(config.__mro__):
        documented |= _attributes(inspect.cleandoc(base.__doc__ or ""))
    return {name: _sentence(documented.get(name, "")) for name in config.model_fields}


def _attributes(doc: str) -> dict[str, str]:
    """The entries of a docstring's section "Attributes:", each on one line."""
    _, _, section = doc.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        entry = re.match(r" {4}(\w+): (.*)", line)
        if entry:
            name = entry[1]
            found[name] = entry[2]
        elif name and line.startswith(" " * 8):
            found[name] += f" {line.strip()}"
        elif line.strip():
            break
    return found


def _sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]
