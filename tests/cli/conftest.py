"""The command line in this process, in a folder of its own; and tiny pipelines saved where `-m FOLDER` finds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from diffusers import FluxImg2ImgPipeline
from peft import get_peft_model_state_dict

from accel.cli import main
from tests.tiny.unknown import stable_diffusion
from tests.tiny_pipelines import TINY, add_lora

DEMO = ("generate", "--prompt", "a red circle moving left", "--size", "quick", "--steps", "3", "--seed", "7")


@dataclass(frozen=True)
class Result:
    """How one command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


Accel = Callable[..., Result]


@pytest.fixture
def accel(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Accel:
    """Runs `accel ARGUMENTS` inside `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACCEL_DEBUG", raising=False)

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def make(accel: Accel) -> Accel:
    """Runs a generation that must succeed."""

    def run(*arguments: object) -> Result:
        result = accel(*arguments)
        assert result.code == 0, result.err
        return result

    return run


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline; saved once."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            if name == "flux_img2img":
                pipe = FluxImg2ImgPipeline(**TINY["flux"].build().components)
            elif name == "stable_diffusion":
                pipe = stable_diffusion()
            else:
                pipe = TINY[name].build()
            pipe.save_pretrained(folders[name])
        return folders[name]

    return folder


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny FLUX, in its file."""
    pipe = TINY["flux"].build()
    add_lora(pipe)
    folder = tmp_path_factory.mktemp("lora")
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="tiny")
    type(pipe).save_lora_weights(folder, transformer_lora_layers=layers)
    (file,) = folder.iterdir()
    return file


def side_file(path: Path) -> dict[str, Any]:
    """The side file of a result."""
    return json.loads(path.with_suffix(".json").read_text())


def sha256(path: Path) -> str:
    """What the side file of a result says of its frames."""
    return side_file(path)["output"]["frames_sha256"]


def listing(folder: Path) -> dict[str, int | None]:
    """Every path under a folder, hidden ones too, with its time of change."""
    return {str(p.relative_to(folder)): p.lstat().st_mtime_ns if p.is_file() else None for p in folder.rglob("*")}
