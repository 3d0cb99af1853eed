"""The JSON file beside a result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from accel.errors import AccelError
from accel.reporting import side_file

GOOD = {"prompt": "x", "seed": 1, "call": {}, "model": {}, "options": {}, "output": {}, "versions": {}}


def test_the_hash_tells_values_and_shape() -> None:
    frames = np.random.default_rng(0).random((2, 4, 6, 3), np.float32)
    same = side_file.frames_sha256(frames)
    assert same == side_file.frames_sha256(np.asfortranarray(frames))
    assert same != side_file.frames_sha256(frames.reshape(2, 6, 4, 3))
    changed = frames.copy()
    changed[1, 3, 5, 2] = np.nextafter(changed[1, 3, 5, 2], np.float32(2))
    assert same != side_file.frames_sha256(changed)


def test_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(side_file.to_json({**GOOD, "prompt": "à la carte"}), encoding="utf-8")
    data = side_file.read(path)
    assert data["prompt"] == "à la carte" and data["schema"] == side_file.SCHEMA


@pytest.mark.parametrize("missing", GOOD)
def test_missing_parts_are_named(missing: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(side_file.to_json({name: value for name, value in GOOD.items() if name != missing}))
    with pytest.raises(AccelError, match=f"damaged: {missing!r}"):
        side_file.read(path)


def test_only_plain_data_is_kept() -> None:
    given = {"a": 1, "b": [1.5, "x"], "c": (1, 2), "d": object(), "e": float("nan"), "f": None, "g": {"h": True}}
    assert side_file.plain_data(given) == {"a": 1, "b": [1.5, "x"], "f": None, "g": {"h": True}}


def test_versions() -> None:
    found = side_file.versions()
    assert found["torch"] and found["diffusers"] and found["accel"] and json.dumps(found)
