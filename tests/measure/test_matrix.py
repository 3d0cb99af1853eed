"""The matrix of a benchmark on made-up runs: what it may say, in which order it measures, what a kill leaves."""

import multiprocessing
import os
import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from accel.cli.bench import show
from accel.config import AccelConfig
from accel.errors import AccelError
from accel.measure.cells import CELLS_FILE, Place, Store
from accel.measure.lines import lines_of, speed_up_of
from accel.measure.matrix import NotGivenBack, Work, check, measure, order
from accel.measure.one_run import timed_run
from accel.measure.trial import Setting
from accel.reporting import front
from accel.runtime.runs import watcher_of
from tests.measure.made_up import MadeUp
from tests.tiny_pipelines import TINY

PLAIN = Setting("plain")
CACHE = Setting("cache", AccelConfig.from_dict({"cache": "delta"}))
HALF = Setting("half", steps=4)
PLACES = [Place(prompt, seed, repeat) for repeat in range(3) for prompt in ("a", "bb") for seed in (0, 1)]
IDENTITY = {"model": "made up"}


@pytest.fixture(scope="module")
def pipe():
    return TINY["wan"].build()


def run(work, store, settings=(PLAIN, CACHE), places=PLACES, warmup=2, **more):
    given = {"keep": lambda place: False, "on_cell": lambda *_: None, **more}
    measure(work, settings, settings[0], places, store, warmup=warmup, **given)


def opened(folder):
    store = Store.open(folder, IDENTITY)
    store.write_header(IDENTITY, {})
    return store


def lines(store, settings=(PLAIN, CACHE)):
    return lines_of(settings, settings[0], store.of)


def test_a_method_that_takes_less_time_is_measured_right_within_its_spread(pipe, tmp_path):
    store = opened(tmp_path / "b")
    run(MadeUp(pipe, speed=lambda steps, on: 0.5 if on else 1.0).work, store)
    plain, cache = lines(store)
    found = cache["speed_up"]
    assert found["pairs"] == len(PLACES) and found["measurable"]
    assert abs(found["ratio"] - 2) <= 2 * found["spread"]
    assert plain["speed_up"] is None and plain["baseline"]
    assert cache["seconds"]["total"]["p20"] <= cache["seconds"]["total"]["median"] <= cache["seconds"]["total"]["p80"]


def test_a_method_that_really_sleeps_less_is_measured_right_by_the_clock(tmp_path):
    """No made-up seconds: blocks that do nothing but sleep, of which a cache leaves some out, and the host's clock."""
    pipe = TINY["wan"].build()
    pipe.set_progress_bar_config(disable=True)
    slept, sleeps = [], {False: set(), True: set()}

    def block(hidden_states, *args, **kwargs):
        slept.append(1)
        time.sleep(0.015)
        return hidden_states

    for one in pipe.transformer.blocks:
        one.forward = block

    def call(given):
        slept.clear()
        done = timed_run(pipe, {**TINY["wan"].call, **given, "generator": torch.Generator().manual_seed(0)})
        sleeps[watcher_of(pipe) is not None].add((given["num_inference_steps"], len(slept)))
        return done

    work = Work(
        pipe,
        4,
        lambda place, steps: {"num_inference_steps": steps or 4, "output_type": "np"},
        call,
        lambda output: output.frames[0],
        MadeUp(pipe).work.judge,
    )
    store = opened(tmp_path / "b")
    # So many that one run on either side, in which the machine did something else, is left out of the spread.
    run(work, store, places=[Place("a", 0, repeat) for repeat in range(9)], warmup=1)
    (plain,), (cached,) = ([count for steps, count in sleeps[on] if steps == 4] for on in (False, True))
    found = lines(store)[1]["loop_speed_up"]
    assert plain / cached > 1.2 and found["measurable"] and found["pairs"] == 9
    # Beside the sleep there is little else in the loop, and a machine at work makes the spread larger too.
    assert abs(found["ratio"] - plain / cached) <= 10 * found["spread"]


def test_a_method_that_does_nothing_is_no_measurable_difference_and_a_warning(pipe, tmp_path):
    store = opened(tmp_path / "b")
    run(MadeUp(pipe, speed=lambda steps, on: 1.0).work, store)
    _, cache = lines(store)
    assert cache["speed_up"]["measurable"] is False
    assert cache["speed_up"]["text"].startswith("no measurable difference (1.00 ± 0.0")
    assert cache["warnings"] == ["it made no measurable difference in speed, and gave the same bits"]
    assert cache["same_bits"] == len(PLACES)
    store = opened(tmp_path / "few")
    run(MadeUp(pipe, speed=lambda steps, on: 1.0).work, store, places=PLACES[:3])
    assert lines(store)[1]["warnings"][1] == "3 pairs tell large differences alone; 6 or more tell smaller ones"


def test_of_a_method_that_corrupts_no_speed_up_is_said(pipe, tmp_path):
    def other(frames, given, on):
        return np.random.default_rng(7).random(frames.shape, dtype=np.float32) if on else frames

    store = opened(tmp_path / "b")
    run(MadeUp(pipe, speed=lambda steps, on: 0.5 if on else 1.0, spoil=other).work, store)
    _, cache = lines(store)
    assert cache["speed_up"] is None and cache["loop_speed_up"] is None
    (reason,) = cache["unsaid"]
    assert reason.startswith("12 of 12 clips show something else than the plain run (PSNR down to ")


def test_a_run_that_gives_other_bits_each_time_is_told(pipe, tmp_path):
    rng = np.random.default_rng(3)

    def unsteady(frames, given, on):
        return (frames + rng.random(frames.shape) * 1e-3).astype(np.float32) if on else frames

    store = opened(tmp_path / "b")
    run(MadeUp(pipe, spoil=unsteady).work, store)
    assert lines(store)[1]["unsaid"] == ["the same run gave other bits the second time"]


def test_without_warm_up_or_baseline_no_speed_up_is_said(pipe, tmp_path):
    store = opened(tmp_path / "b")
    made = MadeUp(pipe)
    run(made.work, store, warmup=0)
    assert len(made.calls) == 2 * len(PLACES)
    assert lines(store)[1]["unsaid"] == ["the runs had no warm-up"]
    without = lines_of([PLAIN, CACHE], PLAIN, lambda one: store.of(one) if one is CACHE else [])
    assert without[1]["speed_up"] is None and "no run of the baseline is done" in without[1]["unsaid"]


def test_of_too_few_pairs_the_spread_is_unknown(pipe, tmp_path):
    store = opened(tmp_path / "b")
    run(MadeUp(pipe).work, store, places=PLACES[:2])
    found = lines(store)[1]["speed_up"]
    assert found["measurable"] is None and found["text"].endswith("(2 pairs: spread unknown)")


def test_settings_take_turns_and_the_baseline_comes_first():
    found = [(one.name, place.seed) for one, place in order([PLAIN, CACHE, HALF], PLAIN, PLACES[:3])]
    assert found == [
        ("plain", 0), ("cache", 0), ("half", 0),
        ("plain", 1), ("half", 1), ("cache", 1),
        ("plain", 0), ("cache", 0), ("half", 0),
    ]  # fmt: skip


def test_a_setting_that_changes_the_pipeline_for_good_ends_the_benchmark(pipe, tmp_path):
    spoiled = []

    def lasting(frames, given, on):
        spoiled.extend([1] if on else [])
        return frames + np.float32(0.01) if spoiled else frames

    with pytest.raises(NotGivenBack, match="after 'cache' the plain pipeline gave other bits"):
        run(MadeUp(pipe, spoil=lasting).work, opened(tmp_path / "b"))


def test_a_pipeline_that_does_not_repeat_itself_cannot_be_checked_and_says_so(pipe, tmp_path):
    calls = []

    def unsteady(frames, given, on):
        calls.append(on)
        return frames if on else frames + np.float32(1e-4 * len(calls))

    store = opened(tmp_path / "b")
    run(MadeUp(pipe, spoil=unsteady).work, store, places=PLACES[:3])
    assert lines(store)[1]["warnings"][0] == (
        "the plain pipeline does not repeat its own bits: whether this left it as it was is not known"
    )
    run(MadeUp(pipe).work, opened(tmp_path / "c"), places=PLACES[:3])
    steady = lines(Store.read(tmp_path / "c"))[1]["warnings"]
    assert not any("does not repeat" in text for text in steady)


def test_what_a_setting_raises_stands_in_its_row_and_what_the_baseline_raises_ends_all(pipe, tmp_path):
    def breaks(frames, given, on):
        if on and given["num_inference_steps"] == 8:
            raise RuntimeError("the cache\nis broken")
        return frames

    store = opened(tmp_path / "b")
    run(MadeUp(pipe, spoil=breaks).work, store)
    plain, cache = lines(store)
    assert plain["runs"] == len(PLACES) and cache["runs"] == 0
    assert cache["errors"] == ["RuntimeError: the cache is broken"] and cache["speed_up"] is None

    def breaks_once(frames, given, on):
        return breaks(frames, given, on and given["prompt"] == "bb")

    store = opened(tmp_path / "d")
    run(MadeUp(pipe, speed=lambda steps, on: 0.5 if on else 1.0, spoil=breaks_once).work, store)
    _, some = found = lines(store)
    assert some["runs"] == 6 and some["speed_up"] is None and front.points(found) == []
    assert some["unsaid"] == ["6 of 12 runs failed: RuntimeError: the cache is broken"]
    assert speed_up_of(store.of(CACHE), store.of(PLAIN), "total").pairs == 6, "those that both finished"

    def fails(frames, given, on):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        run(MadeUp(pipe, spoil=fails).work, opened(tmp_path / "c"))


def test_a_rival_that_is_not_installed_says_so_in_its_row(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    settings = (PLAIN, Setting("other", rival="torchao-int8"))
    store = opened(tmp_path / "b")
    run(MadeUp(pipe).work, store, settings)
    other = lines(store, settings)[1]
    assert other["errors"] == ['AccelError: torchao is not installed: pip install "dit-accel[rivals]"']
    assert other["runs"] == 0 and other["speed_up"] is None and other["library"] is None


def test_a_baseline_that_gives_other_bits_the_second_time_is_red_for_all(pipe, tmp_path):
    rounds = []

    def unsteady(frames, given, on):
        rounds.append(on)
        return frames if on or given["num_inference_steps"] < 8 else frames + np.float32(1e-3 * len(rounds))

    store = opened(tmp_path / "b")
    run(MadeUp(pipe, spoil=unsteady).work, store, places=PLACES[:5])
    assert "the baseline itself gave other bits the second time" in lines(store)[1]["unsaid"]


def test_a_setting_that_fails_and_leaves_something_behind_ends_the_benchmark(pipe, tmp_path):
    spoiled = []

    def breaks(frames, given, on):
        if on:
            spoiled.append(1)
            raise RuntimeError("half of it stays")
        return frames + np.float32(0.01) if spoiled else frames

    with pytest.raises(NotGivenBack, match="after 'cache' the plain pipeline gave other bits"):
        run(MadeUp(pipe, spoil=breaks).work, opened(tmp_path / "b"))


def test_each_batch_is_warmed_up_and_one_that_fails_ends_nothing(pipe, tmp_path):
    made = MadeUp(pipe)
    sizes = []

    def arguments(place, steps):
        sizes.append((place.batch, steps))
        if place.batch > 4:
            raise RuntimeError("no memory")
        return made.work.arguments(place, steps)

    store = opened(tmp_path / "b")
    places = [PLACES[0], Place("a", 0, 0, 4), Place("a", 0, 0, 8)]
    run(replace(made.work, arguments=arguments), store, places=places)
    assert sizes.count((4, 2)) == 2, "one short run of each setting"
    plain, cache = lines(store)
    assert set(plain["results_per_minute"]) == {"1", "4"} == set(cache["results_per_minute"])
    assert plain["errors"] == ["RuntimeError: no memory"] == cache["errors"]


def test_fewer_steps_stand_against_what_is_accelerated(pipe, tmp_path):
    def worse(frames, given, on):
        return frames + np.float32(0.05) if on else frames

    settings = (PLAIN, CACHE, HALF)
    store = opened(tmp_path / "b")
    run(MadeUp(pipe, speed=lambda steps, on: 0.7 if on else steps / 8, spoil=worse).work, store, settings=settings)
    _, cache, half = found = lines(store, settings)
    beside = cache["fewer_steps"]
    assert beside["setting"] == "half" and 0.6 < beside["speed_up"]["ratio"] < 0.8 and beside["speed_up"]["measurable"]
    assert half["fewer_steps"] is None
    assert any(one.startswith("cache: half takes no longer and is as good or better (") for one in show.remarks(found))


def test_fewer_steps_in_as_much_time_are_told_to_take_about_as_long(pipe, tmp_path):
    def worse(frames, given, on):
        return frames + np.float32(0.05) if on else frames

    settings = (PLAIN, CACHE, HALF)
    store = opened(tmp_path / "b")
    run(MadeUp(pipe, speed=lambda steps, on: 0.5 if on else steps / 8, spoil=worse).work, store, settings=settings)
    text = show.remarks(lines(store, settings))
    assert any(one.startswith("cache: half takes about as long, and is as good or better (") for one in text)


def test_larger_batches_count_for_the_throughput_alone(pipe, tmp_path):
    places = [*PLACES, Place("a", 0, 0, 4)]
    store = opened(tmp_path / "b")
    run(MadeUp(pipe, speed=lambda steps, on: 1.0, noise=0.0).work, store, places=places)
    plain, cache = lines(store)
    assert plain["results_per_minute"] == {"1": pytest.approx(60), "4": pytest.approx(240)}
    assert cache["runs"] == len(PLACES)


def test_what_the_pipeline_refuses_is_refused_before_a_run(pipe):
    impossible = Setting("odd", AccelConfig.from_dict({"cache": {"method": "tdc", "units": "blocks"}}), rival=None)
    check(pipe, [PLAIN, CACHE, impossible])
    image = TINY["sana"].build()
    with pytest.raises(AccelError, match="setting 'sparse': "):
        check(image, [PLAIN, Setting("sparse", AccelConfig.from_dict({"attention": "pisa"}))])


def test_a_store_belongs_to_one_model_and_machine(tmp_path):
    opened(tmp_path / "b")
    with pytest.raises(AccelError, match='holds results with model "made up", this is "another"'):
        Store.open(tmp_path / "b", {"model": "another"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(AccelError, match=r"is not empty and holds no bench\.json"):
        Store.open(tmp_path / "full", IDENTITY)
    with pytest.raises(AccelError, match="give a folder that accel bench has written"):
        Store.read(tmp_path / "nothing")


def test_measuring_afresh_takes_away_what_a_benchmark_wrote_and_nothing_else(pipe, tmp_path):
    store = opened(tmp_path / "b")
    run(MadeUp(pipe).work, store, places=PLACES[:1], keep=lambda place: True)
    (tmp_path / "b" / "report.html").write_text("mine")
    Store.clear(tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["report.html"]


def test_clips_are_kept_as_they_are_shown(pipe, tmp_path):
    store = opened(tmp_path / "b")
    run(MadeUp(pipe).work, store, keep=lambda place: place == PLACES[0])
    kept, reference = store.clip(PLAIN, PLACES[0]), store.reference(PLAIN, PLACES[0])
    assert kept.dtype == np.uint8 and np.abs(kept / 255 - reference).max() <= 0.5 / 255 + 1e-6
    assert store.clip(PLAIN, PLACES[1]) is None


FOUR = (PLAIN, CACHE, HALF, Setting("quarter", steps=2))


def _work_until_killed(pipe, folder):
    made = MadeUp(pipe, noise=0.0)
    call = made.work.call
    slow = replace(made.work, call=lambda given: (time.sleep(0.005), call(given))[1])
    run(slow, opened(folder), settings=FOUR)
    os._exit(0)


def _size(path):
    return path.stat().st_size if path.exists() else 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_twenty_times_it_gives_the_same(pipe, tmp_path):
    whole = opened(tmp_path / "whole")
    run(MadeUp(pipe, noise=0.0).work, whole, settings=FOUR)
    context, rng, kills, cells = multiprocessing.get_context("fork"), random.Random(5), 0, tmp_path / "b" / CELLS_FILE
    while True:
        process, before = context.Process(target=_work_until_killed, args=(pipe, tmp_path / "b")), _size(cells)
        process.start()
        while kills < 20 and process.is_alive() and _size(cells) == before:
            time.sleep(0.001)
        if kills < 20 and process.is_alive():
            time.sleep(rng.uniform(0, 0.008))
            process.kill()
            kills += 1
        process.join()
        if process.exitcode == 0:
            break
    assert kills == 20
    assert len(cells.read_text().splitlines()) == len(whole)
    assert _quality(Store.read(tmp_path / "b")) == _quality(whole)


def _quality(store):
    return {(cell.setting, cell.place): cell.figures["quality"] for cell in store}
