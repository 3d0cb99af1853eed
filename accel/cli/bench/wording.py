"""From the text of `--setting`, or a file of them, to what is compared."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from accel.cli import methods
from accel.cli.methods import MethodOptions
from accel.errors import AccelError
from accel.measure.rivals import RIVALS
from accel.measure.trial import Setting
from accel.presets import PRESETS
from accel.reporting.side_file import file_sha256

PLAIN = "plain"
# Shares of the steps with which the plain pipeline stands beside what is accelerated; chosen by us.
FEWER = (0.8, 0.65, 0.5, 0.4)
_WORDS = ("preset", "config", "attention", "cache", "quantize", "steps", "rival")


def default_settings() -> list[Setting]:
    """The presets."""
    return [read(name, None) for name in PRESETS]


def plain() -> Setting:
    """The pipeline as it is."""
    return Setting(PLAIN)


def fewer_steps(steps: int) -> list[Setting]:
    """The plain pipeline with fewer steps, which every cache must beat in the same time."""
    counts = dict.fromkeys(max(1, round(share * steps)) for share in FEWER)
    return [Setting(f"{PLAIN}, {count} steps", steps=count) for count in counts if count < steps]


def read(text: str, beside: Path | None) -> Setting:
    """One setting: `plain`, a preset's name, or words such as `cache=tdc cache.threshold=0.1 steps=20`.

    `NAME: words` gives it a name of its own. `rival=NAME` is what another library has, and the words beside it are that
    one's settings; whether that library is here is said in its row. `beside` is the model's folder.

    Raises:
        AccelError: what cannot be read, an unknown name, an impossible setting.
    """
    name, mark, rest = text.partition(":")
    named = bool(mark) and "=" not in name
    body = rest if named else text
    label = " ".join((name if named else text).split())
    if not label or not body.strip():
        raise AccelError(
            f"--setting {text!r} is empty; give plain, a preset, or such as 'cache=tdc cache.threshold=0.1'"
        )
    try:
        words = shlex.split(body)
    except ValueError as error:
        raise AccelError(f"--setting {text!r} cannot be read: {error}") from error
    if words == [PLAIN]:
        return Setting(label)
    if len(words) == 1 and "=" not in words[0]:
        words = [f"preset={words[0]}"]
    return _of_words(label, words, beside)


def read_file(path: Path, beside: Path | None) -> list[Setting]:
    """A YAML or JSON file: names, each with a text as for `--setting` or with a configuration as a mapping.

    Raises:
        AccelError: what cannot be read, with the name in the file.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AccelError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except yaml.YAMLError as error:
        raise AccelError(f"{path} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or not data:
        raise AccelError(f"{path} holds no settings: write a line for each, such as 'fast tdc: cache=tdc'")
    found = []
    for name, value in data.items():
        try:
            if isinstance(value, str):
                one = replace(read(value, beside), name=" ".join(str(name).split()))
            elif isinstance(value, Mapping):
                one = _of_mapping(str(name), value)
            else:
                raise AccelError("it is neither a text nor a mapping")
        except AccelError as error:
            raise AccelError(f"{path}, {name!r}: {error}") from error
        found.append(one)
    return found


def with_files(setting: Setting) -> Setting:
    """The setting with what the files that its methods name hold now: with another calibration it is another one.

    What is no file is left out here, and refused with the method.
    """
    named = {path for method in setting.config.methods for name in method.files if (path := getattr(method, name))}
    return replace(setting, files={path: file_sha256(Path(path)) for path in sorted(named) if Path(path).is_file()})


def named_apart(settings: Sequence[Setting]) -> list[Setting]:
    """The settings, each once; refuses two of one name that differ, and another that is called plain.

    Raises:
        AccelError: the name.
    """
    found: dict[str, Setting] = {}
    for one in settings:
        if one.name == PLAIN and one.fingerprint != plain().fingerprint:
            raise AccelError("plain is the pipeline as it is; give the setting that is called so another name")
        known = found.setdefault(one.name, one)
        if known.fingerprint != one.fingerprint:
            raise AccelError(f"two settings are called {one.name!r}; name one of them, as in 'other: cache=tdc'")
    by_data: dict[str, Setting] = {}
    for one in found.values():
        known = by_data.setdefault(one.fingerprint, one)
        if known is not one:
            raise AccelError(f"settings {known.name!r} and {one.name!r} are the same; leave one out")
    return list(found.values())


def _of_words(label: str, words: Sequence[str], beside: Path | None) -> Setting:
    try:
        return _understood(label, words, beside)
    except AccelError as error:
        raise AccelError(f"setting {label!r}: {error}") from error


def _understood(label: str, words: Sequence[str], beside: Path | None) -> Setting:
    known: dict[str, list[str]] = {word: [] for word in _WORDS}
    others: list[str] = []
    for word in words:
        key, mark, value = word.partition("=")
        if not mark or not value:
            raise AccelError(f"{word!r} is not of the form cache=tdc or cache.threshold=0.1")
        if key in known:
            known[key].append(value)
        else:
            others.append(word)
    for key, values in known.items():
        if len(values) > 1 and key != "cache":
            raise AccelError(f"{key} is given {len(values)} times; once is enough")
    steps = _steps(known["steps"])
    if known["rival"]:
        return _rival(label, known, others, steps)
    chosen = {key: values[0] for key, values in known.items() if values}
    if not others and not chosen.keys() - {"steps"}:
        return Setting(label, steps=steps)
    options = MethodOptions(
        chosen.get("preset"),
        Path(chosen["config"]).expanduser() if "config" in chosen else None,
        chosen.get("attention"),
        tuple(known["cache"]),
        chosen.get("quantize"),
        methods.settings(others),
    )
    config, _ = methods.resolve(options, beside)
    return Setting(label, config, steps)


def _rival(label: str, known: dict[str, list[str]], others: list[str], steps: int | None) -> Setting:
    ours = [key for key, values in known.items() if values and key not in ("rival", "steps")]
    if ours:
        raise AccelError(f"a rival stands alone; leave {ours[0]} out")
    (name,) = known["rival"]
    if name not in RIVALS:
        from accel.methods.base import nearest

        raise AccelError(f"no rival {name!r}{nearest(name, RIVALS)}")
    return Setting(label, steps=steps, rival=name, rival_settings=dict(methods.settings(others)))


def _of_mapping(name: str, value: Mapping[str, Any]) -> Setting:
    from accel.config import AccelConfig

    data = dict(value)
    steps = data.pop("steps", None)
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise AccelError(f"steps is {steps!r}; it is a whole number from 1")
    return Setting(name, AccelConfig.from_dict(data) if data else AccelConfig(), steps)


def _steps(values: list[str]) -> int | None:
    if not values:
        return None
    if not values[0].isdecimal() or int(values[0]) < 1:
        raise AccelError(f"steps={values[0]} is not possible; it is a whole number from 1")
    return int(values[0])
