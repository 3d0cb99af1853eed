"""`accel bench` and `accel compare`: what they print, keep, go on with, and refuse."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from accel.cli import main
from accel.cli.bench import report_run, run, wording
from accel.cli.bench.heat_run import measure_heat
from accel.cli.bench.pictures import film
from accel.cli.bench.results import places_of
from accel.cli.printing import Format
from accel.errors import AccelError
from accel.measure.cells import Place, Store
from accel.measure.confidence import LEAST
from accel.measure.matrix import Work
from accel.measure.trial import Setting
from tests.repository.tree import ROOT

PROMPT = "a red circle moving left on a black background"
QUICK = ("--size", "quick", "--steps", "4", "--num-frames", "5", "--prompt", PROMPT)
SETTINGS = (
    "-s",
    "front: cache=delta cache.interval=2 cache.dense_steps=0.25",
    "-s",
    "bad: rival=taylorseer cache_interval=0",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a finished benchmark."""
    folder = tmp_path_factory.mktemp("bench") / "results"
    assert main(["bench", *QUICK, *SETTINGS, "--repeats", "3", "--no-fewer-steps", "--heat", "-o", str(folder)]) == 0
    return folder


def test_it_prints_a_table_and_measures_nothing_twice(accel, done):
    before = (done / "cells.jsonl").read_text()
    result = accel("bench", *QUICK, *SETTINGS, "--repeats", "3", "--no-fewer-steps", "-o", done)
    assert result.code == 0, result.err
    assert (done / "cells.jsonl").read_text() == before
    lines = result.out.splitlines()
    assert lines[0].startswith("3 settings on 1 prompt: 9 runs, 9 known already; each is kept in ")
    assert lines[1].split()[:2] == ["setting", "speed-up"]
    assert [line.split("  ")[0] for line in lines[2:5]] == ["plain", "front", "bad"]
    assert any(line.startswith("bad: failed: RunFailed: WanPipeline failed: ZeroDivisionError") for line in lines)


def test_json_has_the_documented_figures(accel, done):
    result = accel("bench", *QUICK, *SETTINGS, "--repeats", "3", "--no-fewer-steps", "-o", done, "--format", "json")
    data = result.json
    assert (data["kind"], data["schema"]) == ("accel bench", 1)
    assert data["identity"]["model"] == "demo" and data["identity"]["machine"]["device"]
    assert data["identity"]["call"]["num_inference_steps"] == 4 and data["plan"]["warmup_steps"] == 2
    plain, front, bad = data["lines"]
    assert plain["baseline"] and plain["runs"] == 3 and plain["block_calls"] == 1
    assert set(plain["seconds"]) == {"text_encoder", "denoiser", "vae", "other", "loop", "total"}
    assert plain["tokens_per_second"] > 0 and plain["peak_bytes"] > 0
    assert front["block_calls"] < 1 and front["quality"]["psnr_db"]["least"] > 12
    assert front["speed_up"]["pairs"] == 3 and front["held_bytes"] > 0
    assert bad["runs"] == 0 and bad["speed_up"] is None and bad["errors"]
    (kept,) = (done / "heat").iterdir()
    heat = data["heat"]["front"]
    assert list(data["heat"]) == ["front"] and json.loads(kept.read_text()) == heat
    assert (heat["kind"], heat["schema"], heat["setting"], heat["prompt"], heat["steps"]) == (
        "accel heat", 1, "front", PROMPT, 4,
    )  # fmt: skip
    errors = [value for one in heat["maps"] for row in one["error"] for value in row]
    assert min(errors) == 0 and 0 < max(errors) < 2 and "error" not in heat["unmeasured"]


def test_both_runs_of_a_heat_map_begin_with_the_same_noise(monkeypatch, tmp_path):
    noise = []

    def measured(pipe, config, run):
        run(), run()
        return {"unmeasured": {}, "maps": []}

    monkeypatch.setitem(measure_heat.__globals__, "measured_heat", measured)
    work = Work(
        None,
        4,
        lambda place, steps: {"generator": torch.Generator().manual_seed(place.seed)},
        lambda given: noise.append(torch.rand(1, generator=given["generator"]).item()),
        None,
        None,
    )
    settings = [wording.read(text, None) for text in ("plain", "cache=tdc", "rival=magcache")]
    store = Store(tmp_path)
    for _ in range(2):
        measure_heat(work, settings, Place("a dog", 3), store, Format.JSON)
    assert len(noise) == 2 and noise[0] == noise[1], "only the setting of Accel is measured, and once"
    assert store.heat(settings[1])["prompt"] == "a dog" and store.heat(settings[0]) is None


def test_failed_runs_are_tried_again_when_asked(accel, done):
    lines = (done / "cells.jsonl").read_text().splitlines()
    failed = sum(json.loads(line)["error"] is not None for line in lines)
    result = accel(
        "bench", *QUICK, *SETTINGS, "--repeats", "3", "--no-fewer-steps", "-o", done, "--retry", "--warmup", "1"
    )
    assert failed == 3 and result.out.count("bad: failed: ") >= 3
    assert len((done / "cells.jsonl").read_text().splitlines()) == len(lines)


def test_a_folder_of_something_else_is_refused(accel, done):
    result = accel("bench", *QUICK[:2], "--steps", "3", *QUICK[4:], "-s", "plain", "--no-fewer-steps", "-o", done)
    assert result.code == 2
    assert "holds results with call " in result.err and "choose another folder with --output" in result.err


def test_another_baseline_is_another_folder(accel, done):
    """The quality of each run that the folder holds is that beside its own baseline."""
    before = (done / "bench.json").read_text()
    options = ("--repeats", "3", "--no-fewer-steps", "--baseline", "front", "-o", done)
    result = accel("bench", *QUICK, *SETTINGS, *options)
    assert result.code == 2 and 'holds results with baseline "plain, ' in result.err
    assert (done / "bench.json").read_text() == before


def test_another_state_of_our_own_code_is_another_folder(accel, done, monkeypatch):
    monkeypatch.setattr(run, "changes", lambda: "0123456789abcdef")
    result = accel("bench", *QUICK, *SETTINGS, "--repeats", "3", "--no-fewer-steps", "-o", done)
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert 'this is "0123456789abcdef": choose another folder with --output, or add --fresh' in result.err


def test_a_folder_at_work_is_left_alone_also_by_fresh(accel, done, monkeypatch):
    monkeypatch.setattr("accel.cli.job.claims.Claims._lock", lambda self, place, wait: False)
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    result = accel("bench", *QUICK, "-s", "plain", "--no-fewer-steps", "--fresh", "-o", done)
    assert result.code == 2 and "another accel bench is at work" in result.err
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


def test_compare_writes_a_sheet_and_a_film_and_nothing_over_them(accel, done):
    result = accel("compare", done, "-s", "front", "-o", "both.png")
    assert result.code == 0, result.err
    with Image.open("both.png") as sheet:
        assert sheet.width > 5 * 128
    assert result.out.splitlines()[-1] == "both.mp4: the same as a film"
    again = accel("compare", done, "-o", "both.png")
    assert again.code == 2 and "both.png exists" in again.err


def test_compare_refuses_names_that_are_taken_before_it_runs_anything(accel, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "_measure", lambda *_: pytest.fail("it ran"))
    (tmp_path / "mine.mp4").write_text("a film")
    result = accel("compare", *QUICK, "-s", "cache=delta", "-o", "mine.png")
    assert result.code == 2 and "mine.mp4 exists" in result.err and len(result.err.splitlines()) == 1
    assert (tmp_path / "mine.mp4").read_text() == "a film" and not (tmp_path / "outputs").exists()


def test_what_compare_and_report_print_as_json_is_documented(accel, done):
    text = (ROOT / "docs" / "benchmarking.md").read_text()
    shown = accel("compare", done, "-o", "json.png", "--format", "json").json
    page = accel("report", done, "-o", "page.html", "--format", "json").json
    for command, data in (("compare", shown), ("report", page)):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `accel {command}` |"))
        assert set(re.findall(r"`(\w+)`", row)) == {*data, *data["paths"]}
        assert f'`schema` {data["schema"]}, `kind` "{data["kind"]}"' in row
    _, _, table = text.partition("A line has:")
    table, _, _ = table.partition("`accel compare --format json`")
    named = {
        key for line in table.splitlines() if line.startswith("|") for key in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named == {key for line in shown["lines"] for key in line}


def test_a_page_has_a_bound_and_leads_to_the_whole_film(accel, done, tmp_path, monkeypatch):
    result = accel("report", done, "-o", "small.html")
    assert result.code == 0, result.err
    assert not (tmp_path / "small.mp4").exists() and "All settings, as a film." in (tmp_path / "small.html").read_text()

    monkeypatch.setattr(report_run, "MOST_BYTES", 5000)
    result = accel("report", done, "-o", "large.html")
    assert result.code == 0, result.err
    (line,) = (line for line in result.out.splitlines() if line.startswith("large.mp4: "))
    assert "the page shows " in line and "compressed harder" in line
    page = (tmp_path / "large.html").read_text()
    assert 'href="large.mp4"' in page and line.partition("the page shows ")[2] in page
    (tmp_path / "large.html").unlink()
    (tmp_path / "large.png").unlink(missing_ok=True)
    again = accel("report", done, "-o", "large.html")
    assert again.code == 2 and "large.mp4 exists" in again.err and not (tmp_path / "large.html").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-s", "nothing"], "holds no setting 'nothing'; it holds plain; front; bad"),
        (["--steps", "3"], "holds finished runs; leave --steps out"),
        (["--prompt", "a dog"], "keeps no results of that prompt and seed; it keeps"),
        (["-o", "both.mp4"], "is not the name of a .png file; try -o both.png"),
        (["--baseline", "front"], "the quality in"),
    ],
)
def test_compare_refuses_in_one_line(accel, done, arguments, reason):
    result = accel("compare", done, *arguments)
    assert result.code == 2 and reason in result.err and len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-s", ""], "is empty"),
        (["-s", "cache=delta threshold"], "'threshold' is not of the form"),
        (["-s", "rival=magcach"], "no rival 'magcach' (nearest: 'magcache')"),
        (["-s", "rival=magcache cache=tdc"], "a rival stands alone; leave cache out"),
        (["-s", "steps=0"], "steps=0 is not possible"),
        (["-s", "a: fast", "-s", "a: quality"], "two settings are called 'a'"),
        (["-s", "a: fast", "-s", "b: fast"], "settings 'a' and 'b' are the same"),
        (["-s", "fast", "--baseline", "slow"], "--baseline 'slow' is none of the settings: fast"),
        (["-s", "plain: steps=2"], "plain is the pipeline as it is"),
        (["--prompt", "a dog", "--prompt", " "], "the prompt is empty"),
        (["--settings", "none.yaml"], "cannot read none.yaml"),
        (["--clips", "some"], "--clips some is not possible"),
        (["--batch", "0"], "'--batch': 0 is not possible; the nearest that works is 1"),
        (["-m", "nowhere"], "there is no prompt"),
    ],
)
def test_bench_refuses_in_one_line_before_anything_is_written(accel, tmp_path, arguments, reason):
    result = accel("bench", *arguments, "--size", "quick", "--no-fewer-steps", "-o", "results")
    assert result.code == 2 and reason in result.err and len(result.err.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_what_the_pipeline_refuses_names_the_setting(accel, saved, tmp_path):
    result = accel("bench", "-m", saved("sana"), "--prompt", "x", "-s", "sparse: attention=pisa", "-o", "results")
    assert result.code == 2 and "setting 'sparse': " in result.err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "pairs"),
    [
        ([], 3),
        (["--prompt", "a dog"], 3),
        (["--prompt", "a dog", "--prompt", "a cat"], 4),
        (["--prompt", "a dog", "--seeds", "2"], 4),
        (["--seeds", "2"], 6),
        (["--prompt", "a dog", "--repeats", "1"], 1),
    ],
)
def test_unless_it_is_told_otherwise_it_makes_pairs_enough_to_know_the_noise(accel, monkeypatch, arguments, pairs):
    wanted = []
    monkeypatch.setattr(run, "carry_out", wanted.append)
    assert accel("bench", *arguments).code == 0
    (one,) = wanted
    assert len(places_of(one.prompts, one.seeds, one.repeats, one.batches)) == pairs
    assert pairs >= LEAST or "--repeats" in arguments


def test_settings_are_read_as_written(tmp_path):
    tdc = wording.read("mine: cache=tdc cache.threshold=0.1 steps=20", None)
    assert (tdc.name, tdc.steps, tdc.config.cache[0].threshold) == ("mine", 20, 0.1)
    assert wording.read("plain", None).plain and wording.read("steps=12", None).steps == 12
    rival = wording.read("rival=magcache threshold=0.03", None)
    assert (rival.name, rival.rival, rival.rival_settings) == (
        "rival=magcache threshold=0.03",
        "magcache",
        {"threshold": 0.03},
    )
    file = tmp_path / "settings.yaml"
    file.write_text("both:\n  attention: pisa\n  cache: tdc\n  steps: 10\nshort: cache=delta\n")
    both, short = wording.read_file(file, None)
    assert len(both.config.methods) == 2 and both.steps == 10 and short.config.methods[0].method == "delta"
    file.write_text("'steps=5: short': cache=delta\n")
    assert [one.name for one in wording.read_file(file, None)] == ["steps=5: short"]
    file.write_text("both:\n  attention: pisaa\n")
    with pytest.raises(AccelError, match="'both': "):
        wording.read_file(file, None)


def test_a_setting_is_known_by_what_its_files_hold(tmp_path):
    file = tmp_path / "mine.json"
    one = wording.read(f"quantize=mixed quantize.calibration={file}", None)
    assert wording.with_files(one) == one, "what is no file is refused with the method"
    found = []
    for text in ("old", "new", "old"):
        file.write_text(text)
        found.append(wording.with_files(one))
    assert found[0].fingerprint == found[2].fingerprint != found[1].fingerprint
    assert Setting.from_dict("again", found[1].to_dict()).fingerprint == found[1].fingerprint
    plain = wording.plain()
    assert wording.with_files(plain) == plain and "files" not in plain.to_dict()


def test_a_film_has_the_rate_of_the_model():
    results = SimpleNamespace(plan={"frames_per_second": 8})
    films = [("plain", np.zeros((2, 4, 4, 3), np.uint8))]
    assert [film(results, films, fps)[1] for fps in (None, 24)] == [8, 24]


def test_a_page_says_of_a_setting_without_a_run_that_there_is_none(tmp_path):
    results = SimpleNamespace(places=[Place("a dog", 0)], store=Store(tmp_path))
    sections = [report_run._section(results, wording.read(text, None)) for text in ("fast", "plain")]
    assert [one.without for one in sections] == [
        "No run with its methods is finished.",
        "No method of Accel was on.",
    ]


def test_fewer_steps_are_shares_of_the_steps():
    assert [one.steps for one in wording.fewer_steps(24)] == [19, 16, 12, 10]
    assert [one.steps for one in wording.fewer_steps(1)] == []
