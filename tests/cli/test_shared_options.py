"""What every command that runs a model has: the same options, which mean the same and are refused alike."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

from accel.cli import app
from accel.cli.groups import Call, Model
from tests.cli.conftest import Accel, listing, sha256, side_file
from tests.tiny_pipelines import TINY

Saved = Callable[[str], Path]
COMMANDS = ("generate", "bench", "compare", "profile", "calibrate")
SMALL = ("--prompt", "a fox", "--steps", "4", "--height", "44", "--width", "52")


def options(command: str) -> dict[str, Any]:
    return {option.name: option for option in get_command(app).commands[command].params}  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_whole_of_a_group(command: str) -> None:
    found, reference = options(command), options("generate")
    for field in (*dataclasses.fields(Call), *dataclasses.fields(Model)):
        assert found[field.name].opts == reference[field.name].opts
        assert found[field.name].help == reference[field.name].help


def test_the_methods_of_the_help_are_those_that_there_are() -> None:
    import accel.methods  # noqa: F401
    from accel.methods.base import registered
    from accel.presets import PRESETS

    found: dict[str, set[str]] = {"preset": set(PRESETS), "cache": {"none"}, "attention": {"dense"}, "quantize": set()}
    for name, entry in registered().items():
        found[entry.config.keyword].add(name)
    for keyword, names in found.items():
        told, _, _ = options("generate")[keyword].help.partition(";")
        assert set(told.rstrip(".").replace(" or ", ", ").split(", ")) == names


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A folder with what the options take, and what they do not."""
    Image.effect_noise((52, 44), 60).save(tmp_path / "start.png")
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def test_bench_starts_from_an_image_with_loras_and_offloading(
    make: Accel, saved: Saved, lora: Path, start: Path
) -> None:
    data = make(
        *("bench", "-m", saved("flux_img2img"), *SMALL, "--image", "start.png", "--lora", f"{lora}=0.5"),
        *("--cpu-offload", "group", "--device", "cpu", "-s", "plain", "--no-fewer-steps", "-o", "found"),
        *("--repeats", "1", "--format", "json"),
    ).json
    options = data["identity"]["options"]
    assert options["image"]["name"] == str(start / "start.png") and options["cpu_offload"] == "group"
    assert [(one["name"], one["scale"]) for one in options["loras"]] == [(str(lora), 0.5)]
    assert data["lines"][0]["runs"] == 1


def test_compare_starts_from_an_image_with_loras(make: Accel, saved: Saved, lora: Path, start: Path) -> None:
    call = ("compare", "-m", saved("flux_img2img"), *SMALL, "--image", "start.png", "-s", "plain", "-s", "balanced")
    make(*call, "-o", "without.png")
    make(*call, "-o", "with.png", "--lora", lora, "--cpu-offload", "model", "--device", "cpu", "--vae-tiling")
    assert (start / "with.png").read_bytes() != (start / "without.png").read_bytes()


def test_profile_starts_from_an_image_with_loras(
    make: Accel, saved: Saved, lora: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(start / "cache"))
    monkeypatch.setattr("accel.measure.ceilings._SIDE", {True: 64})
    monkeypatch.setattr("accel.measure.ceilings._COPIED", {True: 1 << 16})
    make("profile", "-m", saved("flux_img2img"), *SMALL, "--image", "start.png", "--lora", lora, "-o", "found")
    layers = json.loads((start / "found" / "profile.json").read_text())["layers"]
    # Its layers are told apart from those that they are added to.
    assert any(layer["name"].endswith(".lora_A.lora_1") for layer in layers)


def test_calibrate_starts_from_an_image_with_loras_and_says_so(
    make: Accel, saved: Saved, lora: Path, start: Path
) -> None:
    made = make(
        *("calibrate", "mixed", "-m", saved("flux_img2img"), *SMALL, "--image", "start.png"),
        *("--lora", f"{lora}=0.5", "-o", "mixed.json"),
    )
    words = shlex.split(made.out.splitlines()[-1])[1:]
    assert words[words.index("--lora") + 1] == f"{lora}=0.5"
    make(*words, "-o", "a.png")
    data = side_file(start / "a.png")
    assert data["options"]["image"]["name"] == str(start / "start.png")
    assert data["summary"]["runs"][0]["methods"]["mixed"]["calibrated"]


def test_the_scale_of_a_lora(make: Accel, saved: Saved, lora: Path, tmp_path: Path) -> None:
    call = ("generate", "-m", saved("flux"), *SMALL, "--seed", "1", "--preset", "none")
    found = {}
    for scale in ("", "=1", "=0.5", "=0"):
        make(*call, "--lora", f"{lora}{scale}", "-o", "a.png", "--overwrite")
        found[scale] = sha256(tmp_path / "a.png")
        if scale == "=0.5":
            assert make("generate", "--replay", "a.json", "-o", "b.png", "--format", "json").json["replay"]["same_bits"]
    make(*call, "-o", "a.png", "--overwrite")
    assert found[""] == found["=1"] and found["=0"] == sha256(tmp_path / "a.png")
    assert len(set(found.values())) == 3


def test_the_variant_of_the_weights(make: Accel, accel: Accel, tmp_path: Path) -> None:
    TINY["flux"].build().save_pretrained(tmp_path / "model", variant="fp16")
    call = ("generate", "-m", "model", *SMALL, "-o", "a.png")
    data = make(*call, "--variant", "fp16", "--format", "json").json
    assert data["options"]["variant"] == "fp16"
    before = listing(tmp_path)
    for options in ((), ("--variant", "fp61")):
        refused = accel(*call, "--overwrite", *options)
        assert refused.code == 2 and len(refused.err.splitlines()) == 1, refused.err
    assert listing(tmp_path) == before


@pytest.mark.parametrize("arguments", [*(("--prompt", "x"), ("--replay", "a.json")), *COMMANDS[1:], "report"])
@pytest.mark.parametrize("rank", [0, 1])
def test_several_processes_are_refused_by_one(
    arguments: str | tuple[str, ...], rank: int, accel: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would do the same, and write it to the same files."""
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    words = ("generate", *arguments) if isinstance(arguments, tuple) else (arguments,)
    argument = {"calibrate": ["mixed"], "report": ["found"]}.get(words[0], [])
    result = accel(*words, *argument)
    says = (
        f"accel: error: accel {words[0]}{' without --prompts' if words[0] == 'generate' else ''} works in one process, "
        "and 2 were started: start it without the launcher, or share many prompts among the processes with accel "
        "generate --prompts FILE\n"
    )
    assert (result.code, result.out, result.err) == (2, "", says if rank == 0 else "")
    assert not listing(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--image", "gone.png"], "cannot read the image gone.png"),
        (["--image", "text.png"], "text.png is not an image"),
        (["--image", "start.png"], "takes no --image; leave it out, or use an image-to-image model"),
        (["--lora", "gone.safetensors"], "there is no LoRA gone.safetensors"),
        (["--lora", "some.safetensors=much"], "'much' is not a scale; write it as in some.safetensors=0.8"),
        (["--lora", "some.safetensors=nan"], "'nan' is not a scale"),
        (["--cpu-offload", "disk"], "'disk' is not one of 'model', 'group'"),
        (["--variant", "fp16"], "the demo has one file of weights"),
        (["--revision", "v1"], "--revision is that of a model of the hub, and demo is none"),
        (["--device", "cuda:99"], "no device 'cuda:99'"),
        (["--dtype", "float7"], "'float7' is not one of"),
        (["--seed", "text"], "'text' is not a whole number"),
        (["--steps", "-3"], "--steps -3 is not possible; the nearest that works is 1"),
    ],
)
def test_refused_alike(command: str, given: list[str], says: str, accel: Accel, start: Path) -> None:
    before = listing(start)
    target = {"generate": "a.mp4", "compare": "a.png", "calibrate": "a.json"}.get(command, "found")
    method = ["mixed"] if command == "calibrate" else []
    result = accel(command, *method, "--prompt", "a red circle", "--size", "quick", "-o", target, *given)
    assert result.code == 2, result.err
    assert says in result.err and len(result.err.splitlines()) == 1, result.err
    assert listing(start) == before
