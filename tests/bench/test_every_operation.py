"""The benchmark of the kernels: that it knows every operation, finds what is wrong, and says what it leaves out."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from accel.kernels import selection
from accel.measure.ceilings import Ceilings
from accel.measure.timing import Timing
from bench.gpu_suite.models import MODELS
from bench.kernels import __main__ as command
from bench.kernels import measuring
from bench.kernels.cases import Place, Trial, Variant, Work
from bench.kernels.measuring import Limits, error_of, measure, measured
from bench.kernels.page import notes, page
from bench.kernels.sizes import SIZES, Size
from bench.kernels.table import NOT_TIMED, OPERATIONS, public_operations
from bench.quantized_memory import GEOMETRIES
from tests.repository.tree import ROOT

# Neither tokens nor text fill their blocks, and 128 divides the width.
TINY = Size((3, 6, 7), 2, 64, 256, "made up", text=70, text_at="prefix")
BEST = Ceilings(flops=1e10, bandwidth=1e9)
LIMITS = Limits(BEST, call=10.0, free=1e10, seconds=0.01, rounds=3)
PLACE = Place("cpu", torch.float32, 0.5)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One size, which takes no time, and ceilings that nobody has to measure."""
    monkeypatch.setitem(SIZES, "tiny", TINY)
    monkeypatch.setattr(command, "ceilings", lambda device, dtype: BEST)


def test_every_public_operation_is_timed_or_is_said_not_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not set(OPERATIONS) & set(NOT_TIMED)
    assert public_operations() == set(OPERATIONS) | set(NOT_TIMED)
    monkeypatch.setattr(selection, "__all__", [*selection.__all__, "_ordered"])
    assert public_operations() - set(OPERATIONS) - set(NOT_TIMED) == {"selection._ordered"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_is_right_and_stands_beside_its_rivals(tiny: None, operation: str, dtype: torch.dtype) -> None:
    rows = measure(operation, "tiny", replace(PLACE, dtype=dtype), LIMITS)
    assert rows
    for row in rows:
        assert row.get("correct") is True, row
        assert row["ms"] > 0 and row["rounds"] == 3 and not row["refused"]
        assert all(rival["speed_up"]["ratio"] > 0 for rival in row["rivals"].values())
        # The rivals compute the same: what NVFP4 or dropped blocks lose is all that may stand between.
        apart = [rival["apart"] for rival in row["rivals"].values() if rival["apart"] is not None]
        assert all(value < (1.0 if operation == "block_attention.block_attention" else 0.2) for value in apart)
    assert len({(row["variant"], row["shape"]) for row in rows}) == len(rows)


def test_sizes_are_those_of_the_published_configurations() -> None:
    def defaults(thing: Any) -> dict[str, Any]:
        return {name: one.default for name, one in inspect.signature(thing).parameters.items()}

    def shape(name: str) -> tuple[int, int, int]:
        return SIZES[name].heads, SIZES[name].head_size, SIZES[name].feed_forward

    names = ("num_attention_heads", "attention_head_dim", "ffn_dim")
    wan = defaults(diffusers.WanTransformer3DModel.__init__)
    assert shape("wan-14b-720p") == shape("wan-14b-480p") == tuple(wan[name] for name in names)
    small = {**wan, **MODELS["wan-1.3b-480p"].sizes}
    assert shape("wan-1.3b-480p") == shape("wan-1.3b-small") == tuple(small[name] for name in names)
    demo = json.loads((ROOT / "pipelines/demo/weights/transformer/config.json").read_text())
    assert shape("demo") == tuple(demo[name] for name in names)
    for size, model, pipeline in (
        ("hunyuan-video-720p", diffusers.HunyuanVideoTransformer3DModel, diffusers.HunyuanVideoPipeline),
        ("flux-1024", diffusers.FluxTransformer2DModel, diffusers.FluxPipeline),
    ):
        facts = defaults(model.__init__)
        heads, width = facts["num_attention_heads"], facts["attention_head_dim"]
        assert shape(size) == (heads, width, 4 * heads * width)
        assert SIZES[size].text == defaults(pipeline.__call__)["max_sequence_length"]
    cog = {**defaults(diffusers.CogVideoXTransformer3DModel.__init__), **GEOMETRIES["CogVideoX-5B"].config}
    heads, width = cog["num_attention_heads"], cog["attention_head_dim"]
    assert shape("cogvideox-5b-480p") == (heads, width, 4 * heads * width)
    assert SIZES["cogvideox-5b-480p"].text == cog["max_text_seq_length"]


@pytest.mark.parametrize(
    ("name", "height", "width", "frames", "temporal"),
    [
        ("wan-1.3b-small", 512, 512, 13, 4),
        ("wan-1.3b-480p", 480, 832, 81, 4),
        ("wan-14b-480p", 480, 832, 81, 4),
        ("wan-14b-720p", 720, 1280, 81, 4),
        ("hunyuan-video-720p", 720, 1280, 129, 4),
        ("flux-1024", 1024, 1024, 1, 4),
        ("cogvideox-5b-480p", 480, 720, 49, 4),
        ("demo", 128, 128, 65, 2),
    ],
)
def test_grids_are_those_of_the_pictures(name: str, height: int, width: int, frames: int, temporal: int) -> None:
    # Eight pixels to a latent and two latents to a token, in all of them.
    assert SIZES[name].grid == ((frames - 1) // temporal + 1, height // 16, width // 16)


def trial(found: Any = 1.0, bound: float = 1e-5) -> Trial:
    wanted = torch.full((4, 4), 1.0, dtype=torch.float64)
    result = torch.full((4, 4), found)
    return Trial(lambda: result, {"torch": result.clone}, lambda x: (x,), lambda: (wanted,), bound)


@pytest.mark.parametrize("found", [1.1, math.nan, math.inf])
def test_nothing_is_said_of_the_speed_of_a_wrong_result(found: float) -> None:
    row = measured(trial(found), Work(0, 64, 64), "cpu", seconds=0.01, rounds=3)
    assert row["correct"] is False
    assert row["rivals"]["torch"]["speed_up"] is None
    row |= {"operation": "a.b", "size": "demo", "variant": "one", "shape": "4×4"}
    (note,) = notes(row)
    assert "wrong, error" in note and "no speed-up is said" in note
    json.dumps(row, allow_nan=False)


def test_results_of_another_shape_number_or_format_are_wrong() -> None:
    one = torch.ones(2, 2)
    assert error_of((one,), (one,), exact=True) == 0
    assert math.isnan(error_of((one,), (torch.ones(2),), exact=False))
    assert math.isnan(error_of((one, one), (one,), exact=False))
    assert error_of((one,), (one.half(),), exact=True) == 1
    assert error_of((one.int(), one), (one.int(), one * 2), exact=False) == 0.5
    assert error_of((torch.tensor([1, 2]),), (torch.tensor([1, 3]),), exact=False) == 0.5


def test_a_difference_inside_the_spread_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"": Timing((1.0, 1.2, 0.8)), "torch": Timing((1.1, 1.0, 1.0))}
    monkeypatch.setattr(measuring, "take_turns", lambda cases, device, **options: dict(times))
    row = measured(trial(), Work(3e9, 2e9, 0), "cpu", seconds=0.01, rounds=3)
    assert row["rivals"]["torch"]["speed_up"]["text"].startswith("no measurable difference (1.00 ±")
    assert row["flop_per_s"] == 3e9 and row["bytes_per_s"] == 2e9
    times["torch"] = Timing((4.0, 4.8, 3.2))
    row = measured(trial(), Work(0, 2e9, 0), "cpu", seconds=0.01, rounds=3)
    assert row["rivals"]["torch"]["speed_up"]["text"] == "4.00× ± 0.01"
    assert row["flop_per_s"] is None


def test_a_rival_that_does_not_run_is_told_and_a_failure_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("no such instruction:\n  here")

    row = measured(replace(trial(), rivals={"odd": broken}), Work(0, 1, 1), "cpu", seconds=0.01, rounds=3)
    assert row["rivals"] == {} and row["refused"] == {"odd": "RuntimeError: no such instruction: here"}
    failing = Variant("one", "4×4", Work(0, 1, 1), lambda: replace(trial(), run=broken))
    monkeypatch.setitem(OPERATIONS, "rotation.rotate", lambda size, place: [failing])
    (row,) = measure("rotation.rotate", "demo", PLACE, LIMITS)
    assert row["failed"] == "RuntimeError: no such instruction: here"


def test_what_takes_too_long_or_too_much_memory_is_skipped_with_the_number_and_what_works() -> None:
    (row,) = measure("block_attention.dense_attention", "wan-14b-720p", PLACE, replace(LIMITS, call=20.0))
    # 4 * 40 * 75600² * 128 operations.
    assert row["skipped"] == (
        "a call takes about 11705 s (1.2e+14 operations at 10 GFLOP/s and 1 GB/s), the limit is 20 s; "
        "the nearest size that works is wan-1.3b-small"
    )
    short = replace(LIMITS, free=5e7)
    row = measure("rotation.rotate", "wan-1.3b-480p", PLACE, short)[0]
    assert row["skipped"] == "it needs about 2.4 GB, 0.1 GB are free; the nearest size that works is demo"
    assert "no size works here" in measure("rotation.rotate", "demo", PLACE, replace(LIMITS, free=1.0))[0]["skipped"]
    assert "skipped: it needs" in page(
        {"command": "", "dtype": "", "density": 1, "block_size": 64, "ceilings": vars(BEST), "machine": {}}, [row]
    )


def test_the_command_prints_one_object_and_writes_where_it_is_told(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "results_folder", lambda device: tmp_path / device)
    asked = ["--sizes", "tiny", "--operations", "apply_delta", "rotation", "--rounds", "3", "--device", "cpu"]
    assert command.main([*asked, "--format", "json", "--write"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == 1 and printed["kind"] == "bench kernels"
    assert printed["command"] == f"python -m bench.kernels {' '.join(asked)} --format json --write"
    assert [row["operation"] for row in printed["rows"]] == ["delta.apply_delta"] * 2 + ["rotation.rotate"]
    assert json.loads((tmp_path / "cpu/kernels.json").read_text()) == printed
    text = (tmp_path / "cpu/kernels.md").read_text()
    assert "## tiny" in text and text.count("| delta.apply_delta |") == 2


def test_a_wrong_operation_makes_the_command_fail(
    tiny: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = Variant("one", "4×4", Work(0, 64, 64), lambda: trial(2.0))
    monkeypatch.setitem(OPERATIONS, "rotation.rotate", lambda size, place: [variant])
    assert command.main(["--sizes", "tiny", "--operations", "rotate", "--device", "cpu"]) == 1
    assert "wrong, error 1.0e+00 with the bound 1e-05: no speed-up is said" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--operations", "rotat"], "the nearest is rotate"),
        (["--sizes", "wan"], "wan-1.3b-480p"),
        (["--density", "0"], "--density 0 is not above 0"),
        (["--rounds", "0"], "--rounds 0 is not above 0"),
        (["--device", "cuda"], "--device cpu is what works here"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    asked: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as refused:
        command.main(asked)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


def test_the_list_names_sizes_operations_and_what_is_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*SIZES, *OPERATIONS, *NOT_TIMED))
