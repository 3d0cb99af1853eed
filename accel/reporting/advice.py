"""Which settings change what was done with a block at a step, and in which direction to move them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.methods.base import MethodConfig, registered
from accel.reporting.heat import Heat, heats

_OPPOSITE = {"raise": "lower", "lower": "raise", "change": "change"}
_VERBS = {"raise": "raise", "lower": "lower", "extend": "add to", None: "change"}

# Denoiser, guidance branch, block, step.
Spot = tuple[str, str, int, int]


class Advice:
    """What the settings of a session can do about single block calls of its last run (`Summary.to_dict`)."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        self._settings = summary["settings"]
        self._heats = [heat for heat in heats(summary) if heat.method in registered()]

    def toward_plain(self, spot: Spot, method: str | None = None) -> str:
        """What brings the call nearer to the plain pipeline's; "" where nothing was approximated or nothing helps.

        With a method, by its settings alone.
        """
        found: dict[str, list[str]] = {}
        for config, word in self._said(spot, method):
            for name in config.levers.get(word, ()) if word in config.approximate else ():
                self._add(found, config, name, toward=True)
        return _sentence(found)

    def cheaper(self, spot: Spot, method: str | None = None) -> str:
        """What makes the call cheaper; "" where nothing does."""
        found: dict[str, list[str]] = {}
        for config, word in self._said(spot, method):
            for name in config.levers.get(word, ()):
                if word not in config.approximate or name in _sparing(config):
                    self._add(found, config, name, toward=False)
        return _sentence(found)

    def _said(self, spot: Spot, method: str | None) -> list[tuple[type[MethodConfig], str]]:
        denoiser, branch, block, step = spot
        found = []
        for heat in self._heats:
            config = registered()[heat.method].config
            if (heat.denoiser, heat.branch) == (denoiser, branch) and method in (None, heat.method):
                found += [(config, word) for word in _words(heat, block, step)]
        return found

    def _add(self, found: dict[str, list[str]], config: type[MethodConfig], name: str, *, toward: bool) -> None:
        value = self._settings[config.method].get(name)
        if value is None:
            return
        verb = _VERBS[config.toward_plain.get(name)]
        shown = f"{config.keyword}.{name}" if verb == "add to" else f"{config.keyword}.{name} ({value})"
        those = found.setdefault(verb if toward else _OPPOSITE[verb], [])
        if shown not in those:
            those.append(shown)


def _sparing(config: type[MethodConfig]) -> set[str]:
    """The settings that make an approximate call cheaper still: not those that decide whether a call is exact."""
    deciding = {name for word, names in config.levers.items() if word not in config.approximate for name in names}
    return {name for name, toward in config.toward_plain.items() if toward != "extend"} - deciding


def _words(heat: Heat, block: int, step: int) -> list[str]:
    # The rows of a quantization are linears, of which the summary does not say in which block they are.
    rows = heat.cells if heat.of_layers else heat.cells[block : block + 1]
    return list(dict.fromkeys(word for row in rows if row[step] for word in row[step].split(" and ")))


def _sentence(found: Mapping[str, list[str]]) -> str:
    parts = []
    for verb, names in found.items():
        first, last = ", ".join(names[:-1]), names[-1]
        parts.append(f"{verb} {first} or {last}" if first else f"{verb} {last}")
    return ", or ".join(parts)
