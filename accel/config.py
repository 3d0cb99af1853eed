"""`AccelConfig`: which methods are on, with which settings; from keywords, files and presets, and back to files.

The form in a file is JSON or YAML::

    version: 1
    cache:
      - {method: delta, interval: 3}

`attention` and `quantize` hold one method each, `cache` a list; `optional` names those of them that are left out, with
a note, on a model that does not allow them. Relative paths in a file are meant from beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

import accel.methods as _methods  # registers the methods
from accel.errors import AccelError
from accel.methods.base import MethodConfig, nearest, registered

__all__ = ["CONFIG_NAME", "AccelConfig", "method_names"]

CONFIG_NAME = "accel_config.json"
VERSION = 1
_KEYWORDS = ("attention", "cache", "quantize")

del _methods


class AccelConfig(BaseModel):
    """The methods of one pipeline.

    Attributes:
        version: Version of the file format.
        attention: Configuration of the sparse attention, None for dense.
        cache: Configurations of the caches, in any order.
        quantize: Configuration of the quantization, None for none.
        optional: Names of the methods among these that are left out, with a note, where the model does not allow them;
            any other is refused there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    version: int = VERSION
    attention: MethodConfig | None = None
    cache: tuple[MethodConfig, ...] = ()
    quantize: MethodConfig | None = None
    optional: tuple[str, ...] = ()

    def __init__(self, **data: Any) -> None:
        # Not a validator, because pydantic would wrap the refusal in an error of its own.
        super().__init__(**_resolved(data))

    def with_methods(self, **chosen: Any) -> AccelConfig:
        """A copy with other methods under some of the keywords; those are not optional.

        Raises:
            AccelError: one line: no such method, one that goes to another keyword, or an impossible setting.
        """
        kept = {keyword: getattr(self, keyword) for keyword in _KEYWORDS if keyword not in chosen}
        names = [c.method for keyword in kept for c in _listed(kept[keyword])]
        optional = tuple(name for name in self.optional if name in names)
        return AccelConfig(version=self.version, **kept, **chosen, optional=optional)

    @property
    def methods(self) -> tuple[MethodConfig, ...]:
        """All active configurations."""
        return tuple(c for keyword in _KEYWORDS for c in _listed(getattr(self, keyword)))

    def with_overrides(self, overrides: Mapping[str, Any]) -> AccelConfig:
        """A copy with these settings, all put in together, so that some may be possible only beside others.

        A flat keyword goes to the one active method that has a field of that name; a path such as `cache.interval` or
        `cache.delta.interval` names the method.

        Raises:
            AccelError: one line: no active method has the setting, several have it, a path names no single one, or the
                value is impossible.
        """
        changes: dict[str, dict[str, Any]] = {}
        for path, value in overrides.items():
            *where, name = path.split(".")
            method = self._at(path, where, name) if where else self._owner(name, value)
            changes.setdefault(method, {})[name] = value
        return self._replaced(changes)

    def with_setting(self, path: str, value: Any) -> AccelConfig:
        """A copy with one setting, by its flat name or its path; raises `AccelError` as `with_overrides`."""
        return self.with_overrides({path: value})

    def _owner(self, name: str, value: Any) -> str:
        """The one active method that has a setting of this name."""
        owners = [c.method for c in self.methods if name in self._settings(c)]
        if not owners:
            raise AccelError(_no_owner(name, self))
        if len(owners) > 1:
            raise AccelError(
                f"both {' and '.join(owners)} have a setting {name!r}: "
                f"write it for one of them, as in {owners[0]}.{name}={value}"
            )
        return owners[0]

    def _at(self, path: str, where: list[str], name: str) -> str:
        """The active method that a path leads to."""
        keyword, method = where[0], where[-1]
        candidates = [
            c
            for c in self.methods
            if keyword in (c.keyword, c.method) and (method in (c.method, c.keyword)) and len(where) <= 2
        ]
        if len(candidates) != 1:
            active = ", ".join(f"{c.keyword}.{c.method}" for c in self.methods) or "none"
            raise AccelError(f"{path!r} names no single active method (active: {active})")
        fields = type(candidates[0]).model_fields
        if name not in fields:
            raise AccelError(f"{candidates[0].method} has no setting {name!r}{nearest(name, fields)}")
        return candidates[0].method

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        return {
            "version": self.version,
            "attention": _plain(self.attention),
            "cache": [_plain(c) for c in self.cache],
            "quantize": _plain(self.quantize),
            "optional": list(self.optional),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AccelConfig:
        """Reads plain data, as `to_dict` gives it.

        Raises:
            AccelError: one line that names what is unknown or impossible: no mapping, a key, a method or a setting, a
                value out of bounds, or another version than this Accel reads.
        """
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            found = "nothing" if data is None else type(data).__name__
            raise AccelError(f"a configuration is a mapping with {', '.join(_KEYWORDS)}, not {found}")
        return cls(**data)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes `accel_config.json` into a model's folder, where `accel.enable` finds it.

        Files that settings name, such as a calibration, are named from beside it where they lie in the folder, so that
        the folder may be moved, and by their whole path elsewhere; they are not copied.

        Returns:
            The path of the file.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(folder) / CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        data = self._with_files(partial(_from_beside, path.parent)).to_dict()
        path.write_text(json.dumps(data, indent=2) + "\n")
        return path

    @classmethod
    def from_pretrained(cls, path: str | Path) -> AccelConfig:
        """Reads a JSON or YAML file, or the `accel_config.json` of a folder.

        A relative path among the settings, as of a calibration, is meant from beside the file.

        Raises:
            AccelError: one line with the file's name: it cannot be read, is neither JSON nor YAML, has another version,
                or says what is unknown or impossible.
        """
        path = Path(path)
        file = path / CONFIG_NAME if path.is_dir() else path
        try:
            # JSON is YAML, so one reader serves both.
            data = yaml.safe_load(file.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise AccelError(f"cannot read the configuration {file}: {_reason(error)}") from error
        except (yaml.YAMLError, ValueError) as error:  # The latter for a date with a thirteenth month, say.
            raise AccelError(f"{file} is neither JSON nor YAML: {' '.join(str(error).split())}") from error
        try:
            return cls.from_dict(data)._with_files(lambda name: str(file.parent / name))
        except AccelError as error:
            raise AccelError(f"{file}: {error}") from error

    def _settings(self, config: MethodConfig) -> set[str]:
        """The settings of one of the methods that mean something beside the others."""
        beside = self.attention is not None and config is not self.attention
        return set(type(config).model_fields) - (config.alone if beside else frozenset())

    def _with_files(self, change: Callable[[str], str]) -> AccelConfig:
        """With other paths of the files that settings name."""
        named = {c.method: {name: getattr(c, name) for name in c.files} for c in self.methods}
        return self._replaced(
            {
                method: {name: change(path) for name, path in files.items() if path is not None}
                for method, files in named.items()
            }
        )

    def _replaced(self, changes: Mapping[str, dict[str, Any]]) -> AccelConfig:
        """With other values for some settings, by method."""

        def change(config: MethodConfig) -> MethodConfig:
            fields = changes.get(config.method)
            return config if fields is None else type(config)(**{**config.model_dump(), **fields})

        return AccelConfig(
            version=self.version,
            attention=self.attention and change(self.attention),
            cache=tuple(change(c) for c in self.cache),
            quantize=self.quantize and change(self.quantize),
            optional=self.optional,
        )


def _resolved(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of an `AccelConfig` with every method as its configuration."""
    unknown = [key for key in data if key not in AccelConfig.model_fields]
    if unknown:
        raise AccelError(
            f"unknown setting {unknown[0]!r} in the configuration{nearest(unknown[0], AccelConfig.model_fields)}"
        )
    version = data.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise AccelError(f"the configuration has version {version!r}; this Accel reads version {VERSION}")
    resolved = dict(data)
    for keyword in ("attention", "quantize"):
        resolved[keyword] = _one(keyword, data.get(keyword))
    resolved["cache"] = _several("cache", data.get("cache"))
    names = [c.method for keyword in _KEYWORDS for c in _listed(resolved[keyword])]
    resolved["optional"] = _optional(data.get("optional"), names)
    return resolved


def _from_beside(folder: Path, path: str) -> str:
    """A file's path from a folder that it lies in, or its whole path."""
    whole = Path(path).absolute()
    return str(whole.relative_to(folder.absolute()) if whole.is_relative_to(folder.absolute()) else whole)


def method_names(keyword: str) -> list[str]:
    """Names of the methods that a keyword takes."""
    return sorted(name for name, entry in registered().items() if entry.config.keyword == keyword)


def _one(keyword: str, value: Any) -> MethodConfig | None:
    if value in (None, "none") or (keyword == "attention" and value == "dense"):
        return None
    if isinstance(value, (list, tuple)):
        raise AccelError(f"{keyword} takes one method, not a list")
    return _method(keyword, value)


def _several(keyword: str, value: Any) -> tuple[MethodConfig, ...]:
    if value is None or value == "none":
        return ()
    values = value if isinstance(value, (list, tuple)) else [value]
    methods = tuple(_method(keyword, v) for v in values)
    names = [m.method for m in methods]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise AccelError(f"{keyword} names {twice} twice")
    return methods


def _optional(value: Any, methods: list[str]) -> tuple[str, ...]:
    if value is not None and not (isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)):
        raise AccelError(f"optional takes a list of names of methods, not {value!r}")
    for name in value or ():
        if name not in methods:
            raise AccelError(f"optional names {name!r}, which is not on{nearest(name, methods)}")
    return tuple(dict.fromkeys(value or ()))


def _listed(value: Any) -> tuple[MethodConfig, ...]:
    """What a keyword holds, as a list."""
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _method(keyword: str, value: Any) -> MethodConfig:
    if isinstance(value, MethodConfig):
        if value.keyword != keyword:
            raise AccelError(f"{type(value).__name__} goes to {value.keyword}=, not to {keyword}=")
        return value
    if isinstance(value, str):
        value = {"method": value}
    if not isinstance(value, dict) or not isinstance(value.get("method"), str):
        known = ", ".join(repr(n) for n in method_names(keyword)) or "nothing yet"
        raise AccelError(f"{keyword} takes a method's name or its config object ({known}), not {value!r}")
    fields = {str(k): v for k, v in value.items() if k != "method"}
    name = value["method"]
    entry = registered().get(name)
    if entry is None or entry.config.keyword != keyword:
        names = method_names(keyword)
        there = f"it takes {', '.join(repr(n) for n in names)}" if names else "no such method is there yet"
        raise AccelError(f"{keyword} has no method {name!r}: {there}{nearest(name, names)}")
    return entry.config(**fields)


def _plain(config: MethodConfig | None) -> dict[str, Any] | None:
    return None if config is None else {"method": config.method, **config.model_dump()}


def _no_owner(name: str, config: AccelConfig) -> str:
    elsewhere = [n for n, entry in registered().items() if name in entry.config.model_fields]
    if elsewhere:
        keyword = registered()[elsewhere[0]].config.keyword
        on = "which is not on" if len(elsewhere) == 1 else "none of which is on"
        return f"{name!r} is a setting of {' and '.join(elsewhere)}, {on}: add {keyword}={elsewhere[0]!r}"
    known = {field for c in config.methods for field in type(c).model_fields} | set(_KEYWORDS)
    return f"no active method has a setting {name!r}{nearest(name, known)}"


def _reason(error: Exception) -> str:
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
