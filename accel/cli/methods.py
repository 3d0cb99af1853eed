"""From the options about methods to the configuration that they mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from accel.errors import AccelError

if TYPE_CHECKING:
    from accel.config import AccelConfig

PLAIN = "none"


@dataclass(frozen=True)
class MethodOptions:
    """`--preset`, `--config`, `--attention`, `--cache`, `--quantize` and `--set`, read but not yet understood."""

    preset: str | None = None
    config: Path | None = None
    attention: str | None = None
    cache: tuple[str, ...] = ()
    quantize: str | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.preset is not None and self.config is not None:
            raise AccelError("--preset and --config both say which methods are on; give one of the two")
        if PLAIN in self.cache and len(self.cache) > 1:
            raise AccelError("--cache none stands alone; leave it out to use the other")
        if self.preset == PLAIN and (self.attention or self.cache or self.quantize or self.settings):
            raise AccelError("--preset none is the plain pipeline; leave it out to use methods")


def settings(texts: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """Reads `--set a.b=c`; values are JSON or YAML."""
    read = []
    for text in texts:
        path, mark, value = text.partition("=")
        if not mark or not all(path.strip().split(".")):
            raise AccelError(f"--set {text} is not of the form cache.interval=3")
        read.append((path.strip(), _value(path, value)))
    return tuple(read)


def resolve(options: MethodOptions, beside: Path | None) -> tuple[AccelConfig, str]:
    """The configuration, and a word for where it comes from.

    `beside` is the model's folder, whose `accel_config.json` counts when nothing is asked for.
    """
    from accel import session
    from accel.config import CONFIG_NAME, AccelConfig

    if options.preset == PLAIN:
        return AccelConfig(), "plain pipeline"
    given = {
        "attention": options.attention,
        "cache": options.cache[0] if options.cache[:1] == (PLAIN,) else list(options.cache) or None,
        "quantize": options.quantize,
    }
    config = session.resolve(options.config or options.preset, given, beside=beside)
    config = config.with_overrides(dict(options.settings))
    if options.config is not None or options.preset is not None:
        origin = str(options.config or options.preset)
    elif any(value is not None for value in given.values()):
        return config, "asked for"
    else:
        origin = CONFIG_NAME if beside is not None and (beside / CONFIG_NAME).is_file() else "balanced"
    changed = options.settings or any(value is not None for value in given.values())
    return config, f"{origin}, changed" if changed else origin


def describe(config: AccelConfig) -> str:
    """The active methods and their settings, in one line."""
    parts = []
    for method in config.methods:
        fields = ", ".join(f"{name}={value}" for name, value in method.model_dump().items())
        parts.append(f"{method.keyword} {method.method} ({fields})")
    return "; ".join(parts) or "no method"


def _value(path: str, text: str) -> Any:
    try:
        # YAML 1.1 takes 1e-3 for a text, JSON does not.
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise AccelError(f"--set {path}={text}: the value is neither JSON nor YAML") from error
