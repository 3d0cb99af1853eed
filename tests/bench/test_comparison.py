"""The benchmarks of the methods on made-up runs: settings, what is kept of a killed one, and the tables."""

import json
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend

from accel.config import AccelConfig
from accel.errors import AccelError
from accel.measure.cells import CELLS_FILE, Cell, Place
from accel.measure.rivals import RIVALS
from accel.measure.trial import Preparation, Setting
from bench import comparison, one_step, sparse_attention, tdc
from bench.comparison import Benchmark, chosen, distinct, setting
from bench.rivals import CACHES, rivals
from bench.tables import MOST_DB, Figure, markdown, rows_of
from tests.measure.made_up import STEPS, MadeUp
from tests.tiny_pipelines import TINY

PLAIN = setting("plain", STEPS)
HALF = setting("half", 4)
TDC = setting("tdc", STEPS, {"cache": {"method": "tdc"}})
BOTH = setting("both", STEPS, {"attention": {"method": "pisa"}, "cache": {"method": "tdc"}})
PIPE = SimpleNamespace(transformer=SimpleNamespace(blocks=range(8)))
PAGE = {"command": "python -m bench.x", "model": "demo", "machine": {"cores": 2, "commit": None}}


def cell(one, seed=0, error=None, *, loop=1.0, total=1.0, methods=None, **given):
    """A finished run; what is given stands among the figures of its quality or of the run."""
    quality = {"psnr_db": 30.0, "ssim": 0.9, "vmaf": 80.0, "motion": 0.02, "score": {"color": True}}
    quality |= {"flags": {}, "same_bits": False, "repeats": None, "lpips": None, "reasons": {}}
    figures = {"seconds": {"loop": loop, "total": total}, "steps": one.steps, "tokens_per_second": None}
    figures |= {"block_calls": 64, "peak_bytes": None, "held_bytes": 0, "library": None, "left_behind": []}
    figures |= {"warmup_steps": 2, "summary": None, "quality": quality}
    if methods is not None:
        figures["summary"] = {"runs": [{"methods": methods, "notes": [], "fallbacks": []}]}
    for name, value in given.items():
        (quality if name in quality else figures)[name] = value
    return Cell(one.fingerprint, Place("a", seed), {} if error else figures, error)


def plain(count=1, **given):
    return [cell(PLAIN, seed, psnr_db=None, ssim=None, vmaf=None, **given) for seed in range(count)]


def rows(found, figure=None):
    """The rows of settings and their cells, as pairs."""
    by_setting = {one.fingerprint: cells for one, cells in found}
    return rows_of([one for one, _ in found], lambda one: by_setting[one.fingerprint], figure)


@pytest.fixture(scope="module")
def pipe():
    return TINY["wan"].build()


def bench_of(pipe, folder, monkeypatch, prompts=("a", "bb", "ccc"), **spoil):
    made = MadeUp(pipe, **spoil)
    judged = made.work.judge
    full = {"ssim": None, "vmaf": None}
    work = made.work.__class__(**{**vars(made.work), "judge": lambda *given: {**full, **judged(*given)}})
    monkeypatch.setattr(comparison, "work", lambda *_: work)
    folder.mkdir(exist_ok=True)
    bench = Benchmark("x", Namespace(), pipe, list(prompts), {}, {"model": "made up", "machine": {}}, folder)
    return bench, made


def test_a_killed_benchmark_goes_on_clip_by_clip(pipe, tmp_path, monkeypatch):
    settings = [PLAIN, TDC, HALF]
    bench, _ = bench_of(pipe, tmp_path / "b", monkeypatch)
    cells = bench.measured(settings)
    done = [cells(one) for one in settings]
    assert [len(each) for each in done] == [3, 3, 3]
    (file,) = tmp_path.rglob(CELLS_FILE)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + lines[-1][:50])
    bench, made = bench_of(pipe, tmp_path / "b", monkeypatch)
    again = bench.measured(settings)
    assert [again(one) for one in settings[:2]] == done[:2]
    assert again(HALF)[:2] == done[2][:2] and again(HALF)[2].figures["quality"] == done[2][2].figures["quality"]
    assert [given["prompt"] for given in made.calls if given["num_inference_steps"] == 4] == ["ccc"]
    bench, made = bench_of(pipe, tmp_path / "b", monkeypatch)
    bench.measured(settings)
    assert made.calls == []


def test_more_prompts_go_on_and_another_baseline_has_clips_of_its_own(pipe, tmp_path, monkeypatch):
    bench, _ = bench_of(pipe, tmp_path / "b", monkeypatch, prompts=("a",))
    bench.measured([PLAIN, HALF])
    bench, made = bench_of(pipe, tmp_path / "b", monkeypatch, prompts=("a", "bb"))
    cells = bench.measured([PLAIN, HALF])
    assert [given["prompt"] for given in made.calls if given["num_inference_steps"] == 4] == ["bb"]
    assert cells(HALF)[0].figures["quality"]["psnr_db"] is not None
    own = bench.measured([HALF])(HALF)
    assert [one.figures["quality"]["psnr_db"] for one in own] == [None, None]


def test_a_setting_that_changes_the_model_for_good_ends_the_benchmark(pipe, tmp_path, monkeypatch):
    spoiled = []

    def lasting(frames, given, on):
        spoiled.extend([1] if on else [])
        return frames + np.float32(0.01) if spoiled else frames

    bench, _ = bench_of(pipe, tmp_path / "b", monkeypatch, spoil=lasting)
    with pytest.raises(SystemExit, match="after 'tdc' the plain pipeline gave other bits"):
        bench.measured([PLAIN, TDC])


def test_a_setting_that_the_pipeline_refuses_ends_it_before_anything_is_measured(tmp_path, monkeypatch):
    bench, made = bench_of(TINY["sana"].build(), tmp_path / "b", monkeypatch)
    with pytest.raises(SystemExit, match="setting 'sparse': "):
        bench.measured([PLAIN, setting("sparse", STEPS, {"attention": {"method": "pisa"}})])
    assert made.calls == [] and not list((tmp_path / "b").iterdir())


def test_settings_are_known_apart_by_what_they_do():
    prepared = [Setting("a", TDC.config, STEPS, prepared=Preparation(words, lambda session: None)) for words in "ab"]
    renamed = setting("other name", STEPS, TDC.config)
    found = [PLAIN, HALF, TDC, BOTH, Setting("r", steps=STEPS, rival="dbcache"), *prepared, renamed]
    assert distinct(found) == found[:-1]
    assert chosen(found[:4], None) == found[:4] and chosen(found[:4], ["td"]) == [PLAIN, TDC]


def test_a_setting_is_prepared_in_each_of_its_runs_and_has_no_words_to_be_had_from(pipe, tmp_path, monkeypatch):
    sessions = []
    prepared = Setting("p", TDC.config, STEPS, prepared=Preparation("made ready", sessions.append))
    bench, _ = bench_of(pipe, tmp_path / "b", monkeypatch, prompts=("a", "bb"))
    assert [one.error for one in bench.measured([PLAIN, prepared])(prepared)] == [None, None]
    assert len(sessions) == 3 and {type(one).__name__ for one in sessions} == {"Session"}, "a warm-up and two runs"
    with pytest.raises(AccelError, match="was prepared by the benchmark that it is of: made ready"):
        Setting.from_dict("p", prepared.to_dict())


def test_rows_are_relative_to_the_first_and_have_the_names_that_quoted_tables_read():
    fast = [
        cell(TDC, 0, psnr_db=None, same_bits=True, block_calls=16, motion=0.01, held_bytes=2_000_000),
        cell(TDC, 1, psnr_db=40.0, ssim=0.7, block_calls=32, motion=0.01, score={"color": True, "shape": False}),
    ]
    first, row = rows([(PLAIN, plain(2, loop=2.0)), (TDC, fast)])
    assert first["psnr_db"] == [None, None] and first["config"] == [] and first["speed_up"] == 1.0
    assert row["psnr_db"] == [MOST_DB, 40.0] and row["ssim"] == [0.9, 0.7]
    assert (row["block_calls"], row["motion"], row["held_mb"]) == (24 / 64, 0.5, 2.0)
    assert (row["loop_speed_up"], row["speed_up"]) == (2.0, 1.0)
    assert row["prompt_accuracy"] == {"color": 1.0, "shape": 0.0, "all": 0.5}
    assert row["config"][0]["method"] == "tdc"
    committed = json.loads((comparison.ROOT / "bench/results/cpu/sparse_attention.json").read_text())["rows"][1]
    assert {key: type(row[key]) for key in committed if key in row} == {
        key: type(value) for key, value in committed.items() if key in row
    }
    assert set(committed) - set(row) == {"overall_density"}


def test_of_clips_that_are_no_results_no_speed_up_is_said():
    far = [cell(TDC, seed, loop=0.5, total=0.5, psnr_db=9.0) for seed in range(3)]
    found = rows([(PLAIN, plain(3)), (TDC, far)])
    assert found[1]["speed_up"] is None and found[1]["loop_speed_up"] is None
    page = markdown("T", PAGE, {8: found}, None, [])
    assert "| tdc | 100.0% | – | 0.5 |" in page
    assert "- tdc: no speed-up is said: 3 of 3 clips show something else than the plain run" in page


def test_a_difference_inside_the_spread_is_none():
    noisy = [cell(TDC, seed, loop=seconds) for seed, seconds in enumerate((0.9, 1.0, 1.1))]
    found = rows([(PLAIN, plain(3)), (TDC, noisy)])
    assert "| no measurable difference (1.00 ± 0." in markdown("T", PAGE, {8: found}, None, [])


def test_what_a_rival_raises_stands_in_its_row_and_what_it_left_behind_below():
    seacache, dbcache = (Setting(name, steps=STEPS, rival=name) for name in ("seacache", "dbcache"))
    broken = Setting("flex", steps=STEPS, rival="flex")
    found = rows(
        [
            (PLAIN, plain()),
            (seacache, [cell(seacache, library="diffusers 1", left_behind=["forward"])]),
            (dbcache, [cell(dbcache, library="cache-dit 2")]),
            (broken, [cell(broken, error="ValueError: a | b")]),
        ]
    )
    page = markdown("T", PAGE, {8: found}, None, [])
    assert "the benchmark put back: seacache of diffusers 1: `forward`; dbcache of cache-dit 2: nothing." in page
    assert r"| flex | – | failed: ValueError: a \| b | – | – |" in page


def test_a_figure_is_found_in_whichever_method_reports_it():
    figure = Figure("overall_density", "density", "density", "{:.2f}")
    reports = {"pisa": {"overall_density": 0.25, "held_bytes": 0}, "tdc": {"held_bytes": 3}}
    found = rows([(PLAIN, plain()), (BOTH, [cell(BOTH, methods=reports)])], figure)
    assert [row["density"] for row in found] == [None, 0.25]
    assert [entry["method"] for entry in found[1]["config"]] == ["pisa", "tdc"]
    assert "| 0.25 |" in markdown("T", PAGE, {8: found}, figure, [])


def test_the_page_has_a_whole_table_for_each_number_of_steps():
    found = rows(
        [(PLAIN, plain(3)), (HALF, [cell(HALF, seed, psnr_db=db) for seed, db in enumerate((20.0, 30.0, 70.0))])]
    )
    page = markdown("Title", PAGE, {24: found, 50: found}, None, ["A note."])
    assert "## 24 steps" in page and "## 50 steps" in page and "A note." in page and "commit" not in page
    table = [text for text in page.splitlines() if text.startswith("|")]
    assert len(table) == 8 and len({text.count("|") for text in table}) == 1
    assert "40.0, 30.0 (20.0)" in table[3]


@pytest.mark.parametrize("steps", [24, 50])
def test_the_settings_of_the_benchmarks_are_possible_and_named_apart(steps):
    for settings in (tdc.settings, one_step.settings, sparse_attention.settings):
        found = settings(PIPE, steps)
        assert found[0].plain and found[0].steps == steps
        assert len({one.name for one in found}) == len(distinct(found)) == len(found)
        assert all(isinstance(one.config, AccelConfig) for one in found)


def test_every_rival_is_there_whether_it_is_installed_or_not(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert {one.rival for one in rivals(24)} == set(RIVALS)
    assert {one.rival for one in tdc.settings(PIPE, 24)} == {None, *CACHES}


def test_clips_of_another_state_of_the_code_or_another_backend_are_kept_apart(monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["bench.x", "--size", "quick"])
    monkeypatch.setattr("accel.load_pipeline", lambda *_, **__: TINY["wan"].build())
    monkeypatch.setattr(comparison, "machine", lambda: {"commit": "0", "modified": True})
    threads, found = torch.get_num_threads(), []
    try:
        for state in (None, "one", "two"):
            monkeypatch.setattr(comparison, "changes", lambda state=state: state)
            found.append(Benchmark.open("x", None))
        with attention_backend("_native_math"):
            found.append(Benchmark.open("x", None))
    finally:
        torch.set_num_threads(threads)
    assert len({bench.folder for bench in found}) == 4
    assert [bench.settings.get("uncommitted_changes") for bench in found] == [None, "one", "two", "two"]
    native, *_, other = (bench.settings["baseline_backend"] for bench in found)
    assert native == {"attention": "native", "compiled": False} and other["attention"] == "_native_math"
    page = markdown("T", {**found[1].about, "machine": {}}, {8: rows([(PLAIN, plain(3))])}, None, [])
    assert "baseline_backend: attention native, not compiled" in page and "uncommitted_changes: one" in page
