"""The `accel_config.json` beside a model: from saving it to the session that goes by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import accel
from accel import AccelConfig
from accel.config import CONFIG_NAME
from accel.errors import AccelError
from accel.methods.flashblock import FlashBlockConfig
from accel.presets import preset
from tests.tiny_pipelines import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "wan"
    TINY["wan"].build().save_pretrained(place)
    return place


def test_a_loaded_model_is_enabled_by_the_file_beside_it(folder: Path) -> None:
    saved = AccelConfig(cache=[{"method": "tdc", "threshold": 0.3}, "flashblock"], optional=["flashblock"])
    saved.save_pretrained(folder)
    pipe = accel.load_pipeline(folder)
    with accel.enable(pipe) as session:
        assert session.config == saved
    with accel.enable(pipe, "fast") as session:
        assert session.config == preset("fast")
    with accel.enable(pipe, cache="delta") as session:
        assert session.config == AccelConfig(cache="delta")
    (folder / CONFIG_NAME).unlink()
    with accel.enable(pipe) as session:
        assert session.config == preset("balanced")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"version": 9}', "version 9; this Accel reads version 1"),
        ('{"cache": ', "neither JSON nor YAML"),
        ('{"cache": "tcd"}', "nearest: 'tdc'"),
        ("", "not nothing"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(folder: Path, text: str, why: str) -> None:
    (folder / CONFIG_NAME).write_text(text)
    pipe = accel.load_pipeline(folder)
    before = vars(pipe.transformer).keys()
    with pytest.raises(AccelError) as refusal:
        accel.enable(pipe)
    message = str(refusal.value)
    assert str(folder / CONFIG_NAME) in message and why in message and "\n" not in message
    assert vars(pipe.transformer).keys() == before
    accel.enable(pipe, "fast").disable()


def test_a_calibration_is_meant_from_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = tmp_path / "settings.yaml"
    file.write_text("cache: {method: flashblock, calibration: measured/heads.json}\nquantize: mixed\n")
    read = AccelConfig.from_pretrained(file)
    assert read.cache == (FlashBlockConfig(calibration=str(tmp_path / "measured/heads.json")),)
    with pytest.raises(AccelError, match=f"cannot read the calibration {tmp_path}/measured/heads.json"):
        accel.enable(TINY["wan"].build(), AccelConfig(cache=read.cache))
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps({"quantize": {"method": "nvfp4", "calibration": "/data/scales.json"}}))
    (nvfp4,) = AccelConfig.from_pretrained(whole).methods
    assert nvfp4.model_dump()["calibration"] == "/data/scales.json"


def test_a_calibration_is_found_again_where_it_was_saved_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place, named in (("model/heads.json", "heads.json"), ("heads.json", str(tmp_path / "heads.json"))):
        config = AccelConfig(cache=FlashBlockConfig(calibration=place))
        file = config.save_pretrained("model")
        assert json.loads(file.read_text())["cache"][0]["calibration"] == named
        (back,) = AccelConfig.from_pretrained("model").methods
        assert Path(back.model_dump()["calibration"]).absolute() == tmp_path / place
