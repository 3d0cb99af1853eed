"""The GPU suite's pipelines on a CPU, in small: every model runs, every setting acts, what did not act has no speed."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from accel.methods.residual import needed
from bench.gpu_suite import models, pipelines
from bench.gpu_suite.cells import Cells
from bench.gpu_suite.models import MODELS, SETTINGS, TINY, Setting
from bench.kernels.sizes import SIZES

# What is slow or did nothing here says so.
pytestmark = pytest.mark.filterwarnings("ignore::accel.errors.AccelWarning")
# Bytes of an H200.
MEMORY = 150_000_000_000


def test_every_model_in_small(tmp_path: Path) -> None:
    cells = Cells(tmp_path, "pipelines", "cpu", time.monotonic() + 600)
    with torch.inference_mode():
        pipelines.run(cells, "cpu", True)
    found = cells.results
    assert {name: cell.get("error") for name, cell in found.items() if cell["state"] != "done"} == {}
    setting = next(iter(SETTINGS))
    for name in MODELS:
        cell = found[f"{name}/{setting}"]
        assert cell["methods"]["pisa"]["overall_density"] < 1
        assert cell["rows"]["accelerated"]["speed_up"]["pairs"] == cell["repeats"] >= 3
    watched = found["recorder/flux-1024"]["rows"]
    assert {"more", "least", "most"} <= set(watched["every block call recorded"])
    assert found["demo/pisa 0.25"]["psnr_db"] > 0
    stored = found["wan-14b-720p/weights in nvfp4"]["rows"]
    assert stored["nvfp4-weight"]["weights_gb"] < stored["plain"]["weights_gb"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_acts_on_random_weights(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "REPEATS", 1)
    with torch.inference_mode():
        found = pipelines._random(TINY["wan-1.3b-480p"], SETTINGS[setting], "cpu")
    assert "withheld" not in found and "speed_up" in found["rows"]["accelerated"]


def test_what_did_nothing_has_no_speed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "REPEATS", 1)
    with torch.inference_mode():
        found = pipelines._random(TINY["wan-1.3b-480p"], Setting(2, {"cache": [{"method": "tdc"}]}), "cpu")
    assert found["withheld"].startswith("tdc was on and did nothing")
    assert "speed_up" not in found["rows"]["accelerated"]


def test_a_result_that_is_not_finite_has_no_speed() -> None:
    with pytest.raises(ValueError, match="accelerated"):
        pipelines._require_finite({"plain": torch.ones(2), "accelerated": torch.tensor([1.0, math.nan])})


def test_a_refusal_is_recorded() -> None:
    config = {"cache": [{"method": "flashblock", "dense_steps": 0.0, "memory_limit": 1e-6}]}
    with torch.inference_mode():
        found = pipelines._random(TINY["wan-1.3b-480p"], Setting(3, config), "cpu")
    assert "more than memory_limit=1e-06 allows" in found["refused"]["accelerated"] and "rows" not in found


@pytest.mark.parametrize(("name", "fits"), [("wan-14b-720p", False), ("hunyuan-video-720p", True)])
def test_flashblock_may_hold_what_the_published_model_leaves_it(name: str, fits: bool) -> None:
    model, size = MODELS[name], SIZES[name]
    config = models.config_for(SETTINGS["flashblock"], model, MEMORY)
    layers = sum(model.sizes[each] for each in model.blocks)
    branches = 2 if model.pipeline == "WanPipeline" else 1
    query = torch.empty(1, size.tokens, size.heads, size.head_size, dtype=torch.bfloat16, device="meta")
    need = needed(query, math.prod(size.grid), 0.25, 64, totals=True)
    held = branches * layers * (need.outputs + need.beside)
    assert (held < 1e9 * config["cache"][0]["memory_limit"]) == fits
    assert models.config_for(SETTINGS["flashblock"], model, None) == SETTINGS["flashblock"].config


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_published_sizes(name: str) -> None:
    model, size = MODELS[name], SIZES[name]
    made: Any = models.transformer(model, "meta", whole=True)
    assert models.tokens(model) == math.prod(size.grid)
    assert (made.config.num_attention_heads, made.config.attention_head_dim) == (size.heads, size.head_size)
    number = sum(parameter.numel() for parameter in made.parameters()) / 1e9
    wanted = {"wan-1.3b-480p": 1.4, "wan-14b-720p": 14.3, "flux-1024": 11.9, "hunyuan-video-720p": 12.8}[name]
    assert number == pytest.approx(wanted, abs=0.1)
