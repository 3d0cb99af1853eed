"""The benchmarks of the methods without a model: rows, what is kept of a killed one, and the tables."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from accel.config import AccelConfig
from bench import delta_cache, sparse_attention, tdc
from bench.clips import Row, Store, key_of
from bench.comparison import SCENES, chosen, measure
from bench.tables import MOST_DB, Figure, lines_of, markdown

PROMPTS = [scene.caption() for scene in SCENES[:2]]
TDC = AccelConfig.from_dict({"cache": {"method": "tdc"}})
BOTH = AccelConfig.from_dict({"attention": {"method": "pisa"}, "cache": {"method": "tdc"}})
PIPE = SimpleNamespace(transformer=SimpleNamespace(blocks=range(8)))


class FakeMaker:
    """Clips of noise, brighter for each row that is not plain; remembers what it made."""

    def __init__(self):
        self.made = []

    def make(self, row, index):
        self.made.append((row, index))
        frames = np.random.default_rng(index).random((3, 12, 12, 3)) * 0.5
        if row.describe():
            frames = frames + 0.1
        clip = {"seconds": 4.0, "loop_seconds": 2.0, "block_calls": 10, "held_bytes": 5e6}
        return frames, {**clip, "left_behind": ["forward"], "methods": {"tdc": {"reused": 0.5}} if row.config else {}}


def clip(**figures):
    given = {"seconds": 1.0, "loop_seconds": 1.0, "block_calls": 64, "held_bytes": 0, "left_behind": [], "methods": {}}
    return {**given, "psnr_db": 30.0, "ssim": 0.9, "motion": 0.02, "score": {"color": True}, **figures}


def test_rows_take_turns_and_are_compared_with_the_first_of_their_group(tmp_path):
    groups = {8: {"plain": Row(8), "tdc": Row(8, TDC), "rival": Row(8, rival="seacache")}, 4: {"plain": Row(4)}}
    maker = FakeMaker()
    clips = measure(groups, maker, PROMPTS, Store(tmp_path))
    order = [(row.steps, len(row.describe()), row.rival, index) for row, index in maker.made]
    assert order == [
        (8, 0, None, 0), (8, 1, None, 0), (8, 1, "seacache", 0), (4, 0, None, 0),
        (8, 0, None, 1), (8, 1, "seacache", 1), (8, 1, None, 1), (4, 0, None, 1),
    ]  # fmt: skip
    assert clips[8]["plain"][0]["psnr_db"] is None
    assert [one["psnr_db"] for one in clips[8]["tdc"]] == [pytest.approx(20.0)] * 2


def test_a_killed_benchmark_goes_on(tmp_path):
    groups = {8: {"plain": Row(8), "tdc": Row(8, TDC)}}
    done = measure(groups, FakeMaker(), PROMPTS, Store(tmp_path))
    lines = (tmp_path / "clips.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "clips.jsonl").write_text("".join(lines[:-1]) + lines[-1][:50])
    maker = FakeMaker()
    assert measure(groups, maker, PROMPTS, Store(tmp_path)) == done
    assert maker.made == [(groups[8]["tdc"], 1)]
    again = FakeMaker()
    measure(groups, again, PROMPTS, Store(tmp_path))
    assert again.made == []


def test_clips_are_known_apart():
    settings = [Row(8), Row(4), Row(8, TDC), Row(8, BOTH), Row(8, rival="dbcache"), Row(8, None, "dbcache", {"a": 1})]
    keys = {key_of(g, row, p, seed) for g in (8, 24) for row in settings for p in PROMPTS for seed in (0, 1)}
    assert len(keys) == 2 * len(settings) * 2 * 2


def test_lines_are_relative_to_the_first_row():
    rows = {"plain": Row(8), "tdc": Row(8, TDC)}
    plain = [clip(psnr_db=None, ssim=None, loop_seconds=2.0), clip(psnr_db=None, ssim=None, loop_seconds=2.0)]
    fast = [
        clip(psnr_db=math.inf, block_calls=16, motion=0.01, held_bytes=2_000_000, left_behind=["b", "a"]),
        clip(psnr_db=40.0, ssim=0.7, block_calls=32, motion=0.01, score={"color": True, "shape": False}),
    ]
    first, line = lines_of(rows, {"plain": plain, "tdc": fast}, None)
    assert first["psnr_db"] == [None, None] and first["config"] == []
    assert line["psnr_db"] == [MOST_DB, 40.0]
    assert (line["block_calls"], line["motion"], line["held_mb"]) == (24 / 64, 0.5, 2.0)
    assert (line["loop_speed_up"], line["speed_up"]) == (2.0, 1.0)
    assert line["prompt_accuracy"] == {"color": 1.0, "shape": 0.0, "all": 0.5}
    assert line["left_behind"] == ["a", "b"]
    assert line["config"][0]["method"] == "tdc"


def test_a_figure_is_found_in_whichever_method_reports_it():
    figure = Figure("overall_density", "density", "density", "{:.2f}")
    rows = {"plain": Row(8), "both": Row(8, BOTH)}
    reports = {"pisa": {"overall_density": 0.25, "held_bytes": 0}, "tdc": {"held_bytes": 3}}
    clips = {"plain": [clip(psnr_db=None, ssim=None)], "both": [clip(methods=reports)]}
    lines = lines_of(rows, clips, figure)
    assert [line["density"] for line in lines] == [None, 0.25]
    assert [entry["method"] for entry in lines[1]["config"]] == ["pisa", "tdc"]
    assert "| 0.25 |" in markdown("T", {"command": "c", "machine": {}}, {8: lines}, figure, [])


def test_the_page_has_a_whole_table_for_each_number_of_steps():
    clips = {"plain": [clip(psnr_db=None, ssim=None)] * 3, "fast": [clip(psnr_db=db) for db in (20.0, 30.0, 70.0)]}
    lines = lines_of({"plain": Row(8), "fast": Row(4)}, clips, None)
    settings = {"command": "python -m bench.x", "model": "demo", "machine": {"cores": 2, "commit": None}}
    page = markdown("Title", settings, {24: lines, 50: lines}, None, ["A note."])
    assert "## 24 steps" in page and "## 50 steps" in page and "A note." in page and "commit" not in page
    table = [text for text in page.splitlines() if text.startswith("|")]
    assert len(table) == 8 and len({text.count("|") for text in table}) == 1
    assert "40.0, 30.0 (20.0)" in table[3]


def test_the_page_says_what_rivals_left_behind():
    rows = {"plain": Row(8), "a": Row(8, rival="seacache"), "b": Row(8, rival="dbcache")}
    clips = {"plain": [clip(psnr_db=None, ssim=None)], "a": [clip(left_behind=["forward"])], "b": [clip()]}
    page = markdown("T", {"command": "c", "machine": {}}, {8: lines_of(rows, clips, None)}, None, [])
    assert "the benchmark put back: seacache: `forward`; dbcache: nothing." in page


@pytest.mark.parametrize("steps", [24, 50])
def test_the_rows_of_the_benchmarks_are_possible_settings(steps):
    for rows in (tdc.rows, delta_cache.rows, sparse_attention.rows):
        found = rows(PIPE, steps)
        assert next(iter(found.values())) == Row(steps)
        settings = [key_of(steps, row, "", 0) for row in found.values()]
        assert len(set(settings)) == len(settings)


def test_a_rival_that_is_not_installed_has_no_row_and_is_named(monkeypatch):
    assert all("dbcache" not in note for note in tdc.notes()) or "cache-dit is not installed" in tdc.notes()[-1]
    monkeypatch.setattr(tdc, "missing", lambda name: "cache-dit is not installed" if name == "dbcache" else None)
    assert not [name for name in tdc.rows(PIPE, 24) if "dbcache" in name]
    assert "dbcache is left out: cache-dit is not installed." in tdc.notes()


def test_rows_can_be_chosen():
    rows = {"plain": Row(8), "tdc, threshold 1": Row(8, TDC), "dbcache": Row(8, rival="dbcache")}
    assert chosen(rows, None) == rows
    assert list(chosen(rows, ["tdc"])) == ["plain", "tdc, threshold 1"]
