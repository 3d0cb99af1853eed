"""The JSON file beside every result: all that is needed to make the same bits again."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import accel
from accel.errors import AccelError

SCHEMA = 1
KIND = "accel generate"
_REQUIRED = {
    "prompt": str,
    "seed": int,
    "call": dict,
    "model": dict,
    "options": dict,
    "output": dict,
    "versions": dict,
}
_PACKAGES = ("torch", "diffusers", "transformers", "triton")


def versions() -> dict[str, str | None]:
    """Versions of all that the bits may depend on; None for a package that is not installed."""
    found: dict[str, str | None] = {"accel": accel.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def frames_sha256(frames: np.ndarray) -> str:
    """SHA-256 over the shape and the little-endian float32 values of frames (T, H, W, 3)."""
    values = np.ascontiguousarray(frames, dtype="<f4")
    digest = hashlib.sha256(f"float32 {'x'.join(map(str, values.shape))}\0".encode())
    digest.update(values.tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def plain_data(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that JSON can hold and give back as they are; the others are left out."""
    kept = {}
    for name, value in arguments.items():
        try:
            if json.loads(json.dumps(value, allow_nan=False)) == value:
                kept[name] = value
        except (TypeError, ValueError):
            continue
    return kept


def to_json(data: Mapping[str, Any]) -> str:
    """The text of a side file."""
    return json.dumps({"schema": SCHEMA, "kind": KIND, **data}, indent=2, ensure_ascii=False) + "\n"


def read(path: Path) -> dict[str, Any]:
    """Reads a side file; AccelError when it is none, or one of another schema."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AccelError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise AccelError(f"{path} is not valid JSON; give the .json file beside a result") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise AccelError(f"{path} does not describe a result; give the .json file beside one")
    if data.get("schema") != SCHEMA:
        raise AccelError(f"{path} has schema {data.get('schema')!r}; this Accel reads schema {SCHEMA}")
    for name, kind in _REQUIRED.items():
        if not isinstance(data.get(name), kind):
            raise AccelError(f"{path} is damaged: {name!r} is missing or of the wrong type")
    return data
