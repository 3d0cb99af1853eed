"""A benchmark that is started several times: each prompt in one process, one that is killed is made up for."""

import json
import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from accel.cli.job.claims import Claims
from accel.measure.cells import CELLS_FILE, Cell, Place, Store
from bench import comparison
from bench.comparison import setting
from bench.sharing import claimed, made_once, side_by_side
from tests.bench.test_comparison import HALF, PLAIN, TDC, bench_of
from tests.tiny_pipelines import TINY

SETTINGS = [PLAIN, TDC, HALF]
PROMPTS = ("a", "bb", "ccc", "dddd")
_PATIENCE = 120
FORK = multiprocessing.get_context("fork")


def run(pipe, folder: Path, told: Path) -> None:
    """One process of a benchmark of made-up clips, each of which takes a moment; tells how many its table has."""
    with pytest.MonkeyPatch.context() as patch:
        bench, _ = bench_of(pipe, folder, patch, prompts=PROMPTS)
        work = comparison.work()

        def call(given):
            time.sleep(0.1)
            return work.call(given)

        patch.setattr(comparison, "work", lambda *_: work.__class__(**{**vars(work), "call": call}))
        cells = bench.measured(SETTINGS)
        told.write_text(json.dumps([len(cells(one)) for one in SETTINGS]))


def test_two_processes_share_the_prompts_and_one_that_is_killed_is_made_up_for(tmp_path):
    pipe, folder = TINY["wan"].build(), tmp_path / "b"
    told = [tmp_path / f"told{number}" for number in range(2)]
    both = [FORK.Process(target=run, args=(pipe, folder, one)) for one in told]
    for process in both:
        process.start()
    while len({prompt for _, prompt in made(folder)}) < 2 and all(process.is_alive() for process in both):
        time.sleep(0.01)
    both[0].kill()
    for process in both:
        process.join(_PATIENCE)
    assert [process.exitcode for process in both] == [-signal.SIGKILL, 0]
    assert json.loads(told[1].read_text()) == [len(PROMPTS)] * len(SETTINGS), "the one that is left makes them all"
    keys = made(folder)
    assert len(set(keys)) == len(keys) == len(PROMPTS) * len(SETTINGS), "nothing is measured twice"


def make_files(folder: Path, names: list[str]) -> None:
    """One process that makes files, each of which takes a moment; tells which it was at."""

    def make(path: Path) -> None:
        (folder / f"{path.name} by {os.getpid()}").touch()
        time.sleep(0.1)
        path.touch()

    made_once(folder, {folder / name: partial(make, folder / name) for name in names})
    assert all((folder / name).exists() for name in names)


def test_files_are_made_once_by_whichever_process_comes_to_them(tmp_path):
    names = ["a", "b", "c", "d"]
    both = [FORK.Process(target=make_files, args=(tmp_path, names)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(_PATIENCE)
    assert [process.exitcode for process in both] == [0, 0]
    told = [path.name.split(" by ") for path in tmp_path.glob("* by *")]
    assert sorted(name for name, _ in told) == names, "none is made twice"
    assert len({process for _, process in told}) == 2, "and they share them"


def made(folder: Path) -> list[tuple[str, str]]:
    """The setting and the prompt of each clip that is kept, line by line."""
    lines = [line for file in folder.rglob(CELLS_FILE) for line in file.read_text().splitlines(keepends=True)]
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(one["setting"], one["place"]["prompt"]) for one in found if one["error"] is None]


def cell(seed: int, began: float, seconds: float, error: str | None = None) -> Cell:
    figures = {} if error else {"began": began, "seconds": {"total": seconds}}
    return Cell("s", Place("a", seed), figures, error)


def test_how_many_ran_side_by_side_stands_above_the_table(tmp_path):
    one_by_one = [cell(0, 0.0, 1.0), cell(1, 1.0, 2.0), cell(2, 3.5, 1.0), cell(3, 0.0, 9.0, "ValueError: no")]
    assert side_by_side([]) == 0 and side_by_side(one_by_one) == 1
    bench = comparison.Benchmark("x", None, None, ["a"], {}, {"model": "m"}, tmp_path, one_by_one)
    assert bench.about["repeats"].endswith("warm-up of 2 steps")
    bench.shown.append(cell(4, 2.0, 5.0))
    assert bench.about["repeats"].endswith("warm-up of 2 steps, 2 processes side by side, each prompt's rows in one")


def test_two_stores_of_one_folder_lose_nothing_and_half_a_line_is_cut_off(tmp_path):
    stores = [Store.open(tmp_path, {"model": "m"}) for _ in range(2)]
    stores[0].write_header({"model": "m"}, {})
    for seed in range(6):
        stores[seed % 2].add(cell(seed, 0.0, 1.0))
        if seed == 2:
            with (tmp_path / CELLS_FILE).open("a") as lines:
                lines.write('{"setting": "of a process that was killed')
    assert [len(store) for store in stores] == [3, 3]
    stores[0].refresh()
    assert (
        sorted(each.place.seed for each in stores[0])
        == list(range(6))
        == [each.place.seed for each in Store.read(tmp_path)]
    )


def test_fresh_takes_nothing_away_from_a_process_at_work(tmp_path):
    store = tmp_path / setting("plain", 24).fingerprint
    store.mkdir()
    place = Place(comparison.SCENES[3].caption(), 3)
    comparison._forget(tmp_path)
    assert not store.exists()
    store.mkdir()
    here, there = FORK.Pipe()
    process = FORK.Process(target=hold, args=(tmp_path, claimed(store.name, place), there))
    process.start()
    try:
        assert here.recv() == "held"
        with pytest.raises(SystemExit, match="leave --fresh out to share"):
            comparison._forget(tmp_path)
        assert store.is_dir()
    finally:
        process.kill()
        process.join(_PATIENCE)
    comparison._forget(tmp_path)
    assert not store.exists()


def hold(folder: Path, name: str, told) -> None:
    with Claims(folder).claim(name):
        told.send("held")
        time.sleep(_PATIENCE)
