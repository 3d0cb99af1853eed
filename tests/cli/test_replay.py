"""`accel generate --replay` makes the same bits, and says so when it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import DEMO, Accel, listing, sha256, side_file


def change(path: Path, **values: Any) -> None:
    """Changes entries of a side file, given by their path with __ for the dot."""
    data = json.loads(path.read_text())
    for name, value in values.items():
        *where, last = name.split("__")
        entry = data
        for key in where:
            entry = entry[key]
        entry[last] = value
    path.write_text(json.dumps(data))


def test_the_same_bits(make: Accel, tmp_path: Path) -> None:
    make(*DEMO, "-o", "a.mp4", "--cache", "delta", "--set", "interval=2", "--fps", 12, "--guidance-scale", 3)
    again = make("generate", "--replay", "a.json", "-o", "b.mp4")
    assert again.out.splitlines()[-1] == "same bits as recorded" and again.err == ""
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    first, second = side_file(tmp_path / "a.mp4"), side_file(tmp_path / "b.mp4")
    assert second["replay"] == {"recorded_sha256": first["output"]["frames_sha256"], "same_bits": True}
    for name in ("prompt", "seed", "model", "weights_hash", "call", "options", "acceleration", "versions"):
        assert first[name] == second[name], name
    # A replay can be replayed.
    assert make("generate", "--replay", "b.json", "-o", "c.mp4", "--format", "json").json["replay"]["same_bits"]


def test_other_bits_are_a_note(make: Accel, tmp_path: Path) -> None:
    make(*DEMO, "--cache", "delta", "-o", "a.gif")
    change(tmp_path / "a.json", seed=8)
    again = make("generate", "--replay", "a.json", "-o", "b.gif")
    assert again.err.startswith("accel: note: the bits differ from the recorded ones")
    assert side_file(tmp_path / "b.gif")["replay"]["same_bits"] is False
    assert sha256(tmp_path / "b.gif") != sha256(tmp_path / "a.gif")


def test_other_versions_are_a_note(make: Accel, tmp_path: Path) -> None:
    make(*DEMO, "--cache", "delta", "-o", "a.gif")
    change(tmp_path / "a.json", versions__diffusers="0.1.0")
    again = make("generate", "--replay", "a.json", "-o", "b.gif")
    assert "accel: note: recorded with diffusers 0.1.0, this is " in again.err
    assert "same bits as recorded" in again.out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights_hash": "0123456789abcdef"}, ["0123456789abcdef", "have the hash"]),
        ({"schema": 99}, ["schema 99", "reads schema 1"]),
        ({"kind": "something"}, ["does not describe a result"]),
        ({"seed": "seven"}, ["'seed' is missing or of the wrong type"]),
        ({"call__num_inference_steps": "many"}, ["is damaged"]),
        ({"call__num_tokens": 3}, ["WanPipeline takes no --num-tokens"]),
        ({"acceleration": {"cache": [{"method": "gamma"}]}}, ["cache has no method 'gamma'"]),
        ({"options__device": "cuda:99"}, ["no device 'cuda:99'"]),
        ({"options__image": {"name": "gone.png", "sha256": "0"}}, ["gone.png", "cannot be read"]),
        ({"model__name": "missing-folder/", "model__size": None}, ["there is no folder"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refusals(changes: dict[str, Any], says: list[str], accel: Accel, tmp_path: Path, recorded: str) -> None:
    (tmp_path / "a.json").write_text(recorded)
    change(tmp_path / "a.json", **changes)
    result = accel("generate", "--replay", "a.json", "-o", "b.gif")
    assert result.code == 2 and len(result.err.splitlines()) == 1, result.err
    assert all(text in result.err for text in says), result.err
    assert set(listing(tmp_path)) == {"a.json"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of one side file."""
    from accel.cli import main

    folder = tmp_path_factory.mktemp("recorded")
    assert main([*DEMO, "-o", str(folder / "a.gif")]) == 0
    return (folder / "a.json").read_text()
