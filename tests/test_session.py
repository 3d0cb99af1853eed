"""`enable`, `disable` and `summary`: what they refuse, and that a refusal changes nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import accel
from tests.conformance.snapshot import snapshot
from tests.tiny_pipelines import TINY


@pytest.fixture(scope="module")
def pipe() -> Any:
    return TINY["wan"].build()


def compiled_whole(pipe: Any) -> Any:
    pipe.transformer.compile(backend="eager")
    return pipe


def wrapped_by_compile(pipe: Any) -> Any:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    return pipe


def with_a_diffusers_cache(pipe: Any) -> Any:
    from diffusers import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    return pipe


def without_blocks(pipe: Any) -> Any:
    del pipe.transformer.blocks
    return pipe


def with_other_blocks(pipe: Any) -> Any:
    pipe.transformer.blocks[2] = torch.nn.Identity()
    return pipe


def with_another_transformer(pipe: Any) -> Any:
    pipe.transformer = torch.nn.Linear(2, 2)
    return pipe


def without_transformer(pipe: Any) -> Any:
    pipe.transformer = None
    return pipe


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (compiled_whole, "compile_repeated_blocks()"),
        (wrapped_by_compile, "compile_repeated_blocks()"),
        (with_a_diffusers_cache, "disable_cache()"),
        (without_blocks, "no module list `blocks`"),
        (with_other_blocks, "blocks.2 is Identity(input); the facts of the family wan expect WanTransformerBlock"),
        (with_another_transformer, "pipe.transformer is a Linear"),
        (without_transformer, "has no transformer or transformer_2"),
    ],
)
def test_pipelines_that_cannot_be_accelerated(change: Any, fragment: str) -> None:
    pipe = change(TINY["wan"].build())
    before = snapshot(pipe)
    with pytest.raises(accel.AccelError) as refusal:
        accel.enable(pipe, cache="delta")
    assert fragment in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert snapshot(pipe) == before


def test_unknown_families_are_told_what_is_known_and_how_to_add_one() -> None:
    with pytest.raises(accel.AccelError, match=r"StableDiffusion3Pipeline is of no family.*wan: WanPipeline.*CONTRIB"):
        accel.enable(TINY["sd3_heun"].build(), cache="delta")
    for thing in (None, 3, "demo", SimpleNamespace()):
        with pytest.raises(accel.AccelError, match="is of no family"):
            accel.enable(thing, cache="delta")


def test_a_subclass_of_a_known_pipeline_is_known(pipe: Any) -> None:
    class Mine(type(pipe)):
        pass

    mine = Mine(**pipe.components)
    mine.set_progress_bar_config(disable=True)
    with accel.enable(mine, cache="delta") as session:
        TINY["wan"].run(mine)
    assert session.summary().to_dict()["runs"][0]["methods"]["delta"]["reused"] > 0


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"preset_or_config": "speedy"}, "quality, balanced, fast"),
        ({"cache": "tda"}, "'delta'"),
        ({"attention": "pisa"}, "attention has no method 'pisa'"),
        ({"cache": "delta", "interval": 0}, "nearest: 1"),
        ({"cache": "delta", "density": 0.5}, "no active method has a setting 'density'"),
        ({"cache": "none", "interval": 2}, "add cache='delta'"),
    ],
)
def test_refused_settings_change_nothing(pipe: Any, arguments: dict[str, Any], fragment: str) -> None:
    before = snapshot(pipe)
    with pytest.raises(accel.AccelError) as refusal:
        accel.enable(pipe, **arguments)
    assert fragment in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert snapshot(pipe) == before


def test_enabling_twice_is_refused_and_the_first_stays(pipe: Any) -> None:
    with accel.enable(pipe, cache="delta") as session:
        with pytest.raises(accel.AccelError, match=r"accelerated already.*accel.disable\(pipe\)"):
            accel.enable(pipe, cache="delta")
        TINY["wan"].run(pipe)
        assert session.summary().to_dict()["runs"][0]["methods"]["delta"]["reused"] > 0
        assert accel.summary(pipe).to_dict()["runs"] == session.summary().to_dict()["runs"]


def test_disable_by_pipeline_twice_and_without_enable(pipe: Any) -> None:
    before = snapshot(pipe)
    accel.disable(pipe)
    session = accel.enable(pipe)
    accel.disable(pipe)
    accel.disable(pipe)
    assert not session.enabled
    assert snapshot(pipe) == before
    with pytest.raises(accel.AccelError, match="not enabled"):
        accel.summary(pipe)


def test_methods_off_is_plain_and_said_so(pipe: Any) -> None:
    plain = TINY["wan"].run(pipe)
    with accel.enable(pipe, cache="none") as session:
        assert torch.equal(TINY["wan"].run(pipe), plain)
    assert "no method is on" in str(session.summary())


def test_summary_in_three_forms_before_and_after_disable(pipe: Any) -> None:
    with accel.enable(pipe, "balanced") as session:
        assert "no run yet" in str(session.summary())
        TINY["wan"].run(pipe)
    summary = session.summary()
    assert json.loads(summary.to_json()) == summary.to_dict()
    run = summary.to_dict()["runs"][0]
    assert run["branches"] == ["cond", "uncond"]
    assert run["grid"] == [3, 12, 16]
    assert 0 < run["denoiser_seconds"] <= run["seconds"]
    report = run["methods"]["delta"]
    assert report["block_calls"] == 4 * 8 * 2
    assert report["reused"] == sum(report["reused_by_step"])
    assert report["relative_change"] > 0
    assert f"reused {report['reused']} of 64 block calls" in str(summary)
    assert "576 tokens (3×12×16)" in str(summary)


def test_too_few_steps_say_that_nothing_was_done(pipe: Any) -> None:
    with (
        accel.enable(pipe, cache="delta", dense_steps=1.0) as session,
        pytest.warns(accel.AccelWarning, match="did nothing"),
    ):
        TINY["wan"].run(pipe)
    assert "did nothing" in str(session.summary())


def test_calls_by_hand_run_plainly_and_are_counted(pipe: Any) -> None:
    arguments = {
        "hidden_states": torch.randn(1, 16, 3, 24, 32, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.zeros(1, 8, pipe.transformer.config.text_dim),
    }
    arguments["hidden_states"] = arguments["hidden_states"][:, : pipe.transformer.config.in_channels]
    with torch.no_grad():
        plain = pipe.transformer(**arguments).sample
        with accel.enable(pipe, cache="delta") as session:
            assert torch.equal(pipe.transformer(**arguments).sample, plain)
    assert session.summary().to_dict()["calls_outside_runs"] == 1
    assert "outside of a run" in str(session.summary())
