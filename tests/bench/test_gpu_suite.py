"""The GPU suite on a CPU: that its parts run, that it goes on where it was stopped, and that failures are results."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from accel.kernels.blocks import listed_blocks
from bench.gpu_suite import cells as saved
from bench.gpu_suite import environment, report, tiles, tuning
from bench.gpu_suite.__main__ import PARTS, main
from bench.gpu_suite.attention import flex_mask
from bench.gpu_suite.cells import Cells, OutOfTime, gather, load, retry
from tests.repository.tree import ROOT


def cells_of(folder: Path, seconds: float = 60.0, **options: Any) -> Cells:
    return Cells(folder, "part", "cpu", time.monotonic() + seconds, **options)


def in_a_process(action: Callable[[], object]) -> int | None:
    """The exit code of a process that does this and no more."""
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    process.join(60)
    return process.exitcode


def test_a_cell_is_measured_once(tmp_path: Path) -> None:
    calls: list[str] = []

    def measure() -> dict[str, Any]:
        calls.append("called")
        return {"ms": 1.5}

    for _ in range(2):
        cells = cells_of(tmp_path)
        cells.run("one", measure, shape=(2, 3))
    assert calls == ["called"]
    assert load(tmp_path / "part.json")["one"] == cells.results["one"]
    assert cells.results["one"]["shape"] == [2, 3] and cells.results["one"]["ms"] == 1.5


def test_a_failure_is_a_result_and_the_others_go_on(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)

    def broken() -> dict[str, Any]:
        raise RuntimeError("out of memory:\n  tried to allocate too much")

    cells.run("broken", broken)
    cells.run("whole", lambda: {"rows": {"case": {"ms": 1.0}}})
    assert cells.results["broken"]["state"] == "failed"
    page = report.page({"device": "none"}, {"small": cells.results}, {}, {})
    assert "1 of 2 cells that began are done" in page
    assert "- broken: failed: RuntimeError: out of memory: tried to allocate too much" in page
    assert "broken: failed" in report.summary("small", cells.results)


def test_a_cell_that_took_its_process_with_it_is_tried_again_on_request_alone(tmp_path: Path) -> None:
    def die() -> None:
        cells = cells_of(tmp_path)
        cells.run("first", lambda: {"ms": 1.0})
        cells.run("deadly", lambda: os.kill(os.getpid(), signal.SIGKILL))  # type: ignore[func-returns-value]

    assert in_a_process(die) == -signal.SIGKILL
    states = {name: cell["state"] for name, cell in gather(tmp_path, "part").items()}
    assert states == {"first": "done", "deadly": "crashed"}
    cells_of(tmp_path).run("deadly", lambda: pytest.fail("tried again"))
    retry(tmp_path, "part")
    cells = cells_of(tmp_path)
    cells.run("first", lambda: pytest.fail("measured twice"))
    cells.run("deadly", lambda: {"ms": 2.0})
    assert [cell["state"] for cell in cells.results.values()] == ["done", "done"]


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_cell_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_off: bool) -> None:
    monkeypatch.setattr(saved, "LIMIT", 0.5)
    code = in_a_process(lambda: cells_of(tmp_path).run("hanging", lambda: time.sleep(50)))  # type: ignore[arg-type,return-value]
    assert code == -signal.SIGALRM
    found = gather(tmp_path, "part", cut_off=cut_off)
    # One that was in the way when the time was up is no crash.
    assert found == {} if cut_off else "longer than 0 s" in found["hanging"]["error"]


def test_no_cell_begins_when_time_is_up(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, -1.0)
    with pytest.raises(OutOfTime):
        cells.run("late", lambda: pytest.fail("began"))
    assert cells.results == {}


def test_processes_share_the_cells(tmp_path: Path) -> None:
    cells_of(tmp_path).run("3", lambda: {"by": "an earlier run"})
    for index in range(2):
        cells = cells_of(tmp_path, share=(index, 2))
        for number in range(6):
            cells.run(str(number), lambda i=index: {"by": i})  # type: ignore[misc]
    found = gather(tmp_path, "part")
    assert {name: cell["by"] for name, cell in found.items()} == {
        "0": 0,
        "1": 1,
        "2": 0,
        "4": 0,
        "5": 1,
        "3": "an earlier run",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["part.json"]


def test_a_rehearsal_saves_nothing(tmp_path: Path) -> None:
    cells_of(tmp_path, rehearse=True).run("one", lambda: {"ms": 1.0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--device", "cpu"], ["--device", "cuda"]])
def test_without_a_gpu_it_says_so(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments) == 2
    assert "--tiny" in capsys.readouterr().err


def test_results_of_another_device_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {**environment.environment("cpu"), "device": "another"}
    (tmp_path / "environment.json").write_text(json.dumps(kept))
    assert main(["--device", "cpu", "--tiny", "--out", str(tmp_path), "--only", "small"]) == 2
    assert "results of another device (another, here" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


def test_a_missing_package_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(environment._NEEDS, "pipelines", ("torch", "no_such_package"))
    assert main(["--device", "cpu", "--tiny", "--out", str(tmp_path), "--only", "pipelines"]) == 1
    line = "it needs no_such_package, which this Python lacks"
    assert line in capsys.readouterr().out and line in (tmp_path / "results.md").read_text()


def test_the_kernels_parts_on_a_cpu_and_a_run_that_is_killed(tmp_path: Path) -> None:
    tiny = ["--device", "cpu", "--tiny", "--out", str(tmp_path), "--processes", "1"]
    command = [sys.executable, "-m", "bench.gpu_suite", *tiny, "--only", "correctness"]
    run = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    path = tmp_path / "correctness.json"
    while len(load(path)) < 4 and run.poll() is None:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    before = {name: cell for name, cell in load(path).items() if cell["state"] == "done"}
    assert len(before) >= 3

    assert main([*tiny, "--only", "correctness", "small", "attention", "linears", "--retry"]) == 0
    parts = {part: load(tmp_path / f"{part}.json") for part in ("correctness", "small", "attention", "linears")}
    assert all(cell["state"] == "done" for part in parts.values() for cell in part.values())
    found = parts["correctness"]
    assert {name: found[name] for name in before} == before
    assert len(found) == 3 * (12 + 3 + 1 + 16)
    names = {name.rpartition("/")[0] for name in found}
    assert names >= {f"quantized_linear/{kind}" for kind in ("plain", "nvfp4", "int8")}
    assert names >= {"rounding_nvfp4_linear/plain", "rounding_nvfp4_linear/rotated"}
    assert all(cell["correct"] and cell["same_bits"] for cell in found.values())
    assert all(cell["error"] < cell["bound"] or cell["error"] == cell["bound"] == 0 for cell in found.values())
    # In 16 bits sums in another order may round to the same numbers.
    assert all(cell["error"] > 0 for name, cell in found.items() if cell["bound"] and name.endswith("float32"))
    (linear,) = parts["linears"].values()
    assert 0 < linear["rows"]["int8, all"]["error"] < linear["rows"]["nvfp4 weight, 16 bits"]["error"] < 0.2
    # Rotated or not, one weight in 4 bits is as far off, and activations in 4 bits go further.
    errors = {kind: linear["rows"][f"mixed, {kind} activations"]["error"] for kind in ("plain", "int8", "nvfp4")}
    assert linear["rows"]["int8, all"]["error"] < errors["plain"] < errors["nvfp4"] < 0.2
    assert linear["rows"]["mixed, int8 activations"]["speed_up"]["pairs"] >= 3
    rows = parts["attention"]["tiny/block64/0.125"]["rows"]
    assert {"ratio", "spread", "text"} <= set(rows["none, all"]["speed_up"]) and "speed_up" not in rows["default"]
    assert rows["default"]["error"] == 0 < rows["hybrid, all"]["error"] < rows["none, all"]["error"] < 0.6
    assert parts["attention"]["tiny/block64/1"]["rows"]["none, all"]["error"] < 1e-5
    assert parts["small"]["copy"]["rows"]["copy"]["gb_per_s"] > 0
    assert {name.partition(".")[0] for name in parts["small"]} >= {"delta", "selection", "block_mass", "rotation"}
    page = (tmp_path / "results.md").read_text()
    assert "no figure here says anything about a GPU" in page
    assert page.count("# tuning\n\nnothing was run.") == page.count("# pipelines\n\nnothing was run.") == 1
    # Few files, to be carried from one machine to another.
    files = {path.name for path in tmp_path.iterdir()}
    assert files <= {"environment.json", "results.md", *(f"{part}.json" for part in PARTS)}


def test_a_wrong_result_is_told() -> None:
    cell = {"state": "done", "error": None, "bound": 1e-2, "same_bits": False, "correct": False}
    told = report.summary("correctness", {"delta/bfloat16": cell})
    assert "0 of them within their bounds" in told
    assert "wrong: delta/bfloat16: error not a number, bound 1e-02, other bits the second time" in told


def test_the_proposal_is_the_fastest_tile_that_is_right() -> None:
    def cell(tail: str, ms: float, columns: int, tokens: int = 64, error: float = 0.0) -> dict[str, Any]:
        tile = {"columns": columns, "warps": 4, "stages": 3, "tokens": tokens}
        return {"head": 64, "block": 64, "tail": tail, "tile": tile, "ms": ms, "error": error}

    done = {
        "a": cell("none", 1.0, 32),
        "b": cell("none", 4.0, 64),
        "c": cell("hybrid", 4.0, 32, tokens=32),
        "d": cell("hybrid", 9.0, 32),
        "e": cell("hybrid", 0.1, 64, error=0.5),
    }
    assert tiles.proposal(done) == [
        "```python",
        "64: Tile(columns=32, warps=4, stages=3, tokens=32),  # 2.0000 ms, geometric mean of the tails",
        "```",
    ]
    assert tiles.proposal({}) == ["No tile of block attention was measured."]


@pytest.mark.parametrize("block", [64, 128])
def test_candidates_hold_the_tiles_of_the_table(block: int) -> None:
    from accel.kernels.block_attention.tiles import TILES

    tried = tuning.candidates(block, "hybrid")
    assert len(tried) == len(set(tried)) and all(tile.columns <= block for tile in tried)
    if block == 64:
        assert all(tile in tried for heads in TILES.values() for tile in heads.values())


@pytest.mark.parametrize("tokens", [256, 300])
def test_flex_attention_gets_the_same_blocks(tokens: int) -> None:
    generator = torch.Generator().manual_seed(2)
    number = -(-tokens // 64)
    blocks = torch.rand(1, 2, number, number, generator=generator).argsort(-1)[..., :3].int()
    counts = torch.randint(1, 4, (1, 2, number), generator=generator).int()
    mask = flex_mask(blocks, counts, tokens, 64)
    assert mask.shape == (1, 2, tokens, tokens)
    assert torch.equal(mask.to_dense().bool(), listed_blocks(blocks, counts, number))
