"""Levels of quality on made-up figures: which setting stands at which, what the closing lines say, the page."""

import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest

from accel.measure.rivals import RIVALS as KNOWN_RIVALS
from accel.measure.verdict import speed_up
from bench import levels
from bench.comparison import distinct
from bench.level_choice import LEVELS, at_level, bests, closing, fastest
from bench.level_settings import FEWER, baseline, families
from bench.rivals import CACHES
from tests.bench.test_comparison import PAGE

PLAIN_SECONDS = 10.0


def line(name, seconds, psnr, kind="method", *, said=True, errors=(), same_bits=0, unsaid=(), measurable=True):
    """A line of a benchmark as far as levels read it."""
    config = {"config": {"cache": []} if kind == "method" else None, "rival": name if kind == "rival" else None}
    ratio = PLAIN_SECONDS / seconds if seconds else None
    quality = {} if psnr is None else {"psnr_db": {"mean": psnr, "least": psnr - 1}}
    return {
        "setting": name,
        "baseline": kind == "plain",
        "config": {"steps": 24, "rival_settings": {}, **config},
        "runs": 0 if seconds is None else 3,
        "errors": list(errors),
        "seconds": {} if seconds is None else {"total": dict.fromkeys(("median", "p20", "p80"), seconds)},
        "quality": quality,
        "missing": {},
        "steps_per_second": None,
        "tokens_per_second": None,
        "same_bits": same_bits,
        "speed_up": {"ratio": ratio, "text": f"{ratio:.2f}×", "measurable": measurable}
        if said and seconds and kind != "plain"
        else None,
        "unsaid": list(unsaid),
        "warnings": [],
        "library": None,
        "left_behind": [],
        "results_per_minute": {},
        "block_calls": 1.0,
        "prompt_accuracy": None,
        "peak_bytes": None,
        "held_bytes": 0,
        "fewer_steps": None,
    }


def against(lines, noise=0.0):
    """The verdict on pairs whose seconds are those of the lines, and one pair in three off by some share."""
    seconds = {one["setting"]: one["seconds"]["total"]["median"] for one in lines if one["seconds"]}

    def times(slower, faster):
        return speed_up([seconds[slower]] * 3, [seconds[faster] * (1 + noise), seconds[faster], seconds[faster]])

    return times


PLAIN = line("plain", PLAIN_SECONDS, None, "plain")
SLOW, FAST, FASTER = line("tdc a", 6.0, 40.0), line("tdc b", 4.0, 30.0), line("tdc c", 2.0, 24.9)
RIVAL, FEW = line("taylor", 5.0, 36.0, "rival"), line("plain, 12 steps", 5.5, 26.0, "fewer")
LINES = [PLAIN, SLOW, FAST, FASTER, RIVAL, FEW]


def test_the_fastest_whose_mean_is_at_least_the_level():
    ours = [SLOW, FAST, FASTER]
    assert fastest(ours, 35.0) is SLOW
    assert fastest(ours, 30.0) is FAST, "exactly the level is enough"
    assert fastest(ours, 25.0) is FAST, "a little less is not"
    assert fastest(ours, 24.0) is FASTER and fastest(ours, 41.0) is None


def test_what_may_have_no_speed_up_stands_at_no_level_and_the_same_bits_at_all():
    frozen, same = line("frozen", 1.0, 50.0, said=False), line("same", 9.0, None, same_bits=3)
    assert fastest([PLAIN, frozen, same], 35.0) is same
    assert fastest([PLAIN, frozen], 25.0) is None


def test_a_method_that_does_not_reach_a_level_says_why():
    broken = line("flex", None, None, "rival", said=False, errors=["RuntimeError: no"])
    red = line("red", 3.0, 11.0, said=False, unsaid=["3 of 3 clips show something else"])
    names = {"tdc": ["tdc a", "tdc b"], "flex": ["flex"], "red": ["red"]}
    found = at_level([*LINES, broken, red], names, 45.0)
    assert {name: why for name, (one, why) in found.items() if one is None} == {
        "tdc": "none of 2 settings: the best has 40.0 dB",
        "flex": "failed: RuntimeError: no",
        "red": "no speed-up is said: 3 of 3 clips show something else",
    }
    assert at_level(LINES, {"tdc": ["tdc a", "tdc b"]}, 35.0)["tdc"][0] is SLOW


def test_the_closing_lines_say_where_we_are_the_front_and_by_how_much():
    found = closing(LINES, against(LINES))
    assert found == [
        "At 35 dB Accel's best, tdc a (1.67×, 40.0 dB), is not the front: the speed-up of taylor (2.00×, 36.0 dB) over "
        "it is 1.20× ± 0.01.",
        "At 30 dB Accel's best, tdc b (2.50×, 30.0 dB), is the front: its speed-up over the best other, "
        "taylor (2.00×, 36.0 dB), is 1.25× ± 0.01.",
        "At 25 dB Accel's best, tdc b (2.50×, 30.0 dB), is the front: its speed-up over the best other, "
        "taylor (2.00×, 36.0 dB), is 1.25× ± 0.01.",
        "Accel has 3 of the 4 settings that none other beats in both speed and mean PSNR.",
        "taylor (2.00×, 36.0 dB) is on the front: over Accel's fastest with as many dB, tdc a (1.67×, 40.0 dB), its "
        "speed-up is 1.20× ± 0.01.",
    ]


def test_a_difference_inside_the_noise_is_no_lead_of_either():
    near = [PLAIN, line("tdc", 5.05, 36.0), RIVAL]
    assert "are equally fast: no measurable difference (1.00 ± 0." in closing(near, against(near, noise=0.2))[0]


def test_alone_on_either_side():
    ours, theirs = [PLAIN, SLOW], [PLAIN, RIVAL]
    assert "is the front: no rival and no fewer steps are faster" in closing(ours, against(ours))[0]
    found = closing(theirs, against(theirs))
    assert found[0] == "At 35 dB Accel has nothing faster than plain, and taylor (2.00×, 36.0 dB) is the front."
    assert found[-1].endswith("Accel has nothing faster than plain with as many dB.")
    assert closing([PLAIN], against([PLAIN]))[0] == "At 35 dB Accel has nothing faster than plain, and no other has."


def test_what_is_slower_than_plain_is_no_front():
    slow = [PLAIN, line("int8", 12.0, 50.0), line("flex", 20.0, 129.0, "rival"), FEW]
    assert bests(slow, 35.0) == (None, None)
    assert closing(slow, against(slow))[-2].startswith("Accel has 0 of the 1 settings")


def test_what_is_faster_by_noise_alone_is_no_front():
    near = line("tdc", 9.97, 50.0, measurable=False)
    assert bests([PLAIN, near, FEW], 35.0) == (None, None)
    assert closing([PLAIN, near, FEW], against([PLAIN, near, FEW]))[-2].startswith("Accel has 0 of the 1 settings")
    slower_but_sure = line("tdc b", 9.98, 50.0)
    assert bests([PLAIN, near, slower_but_sure], 35.0) == (slower_but_sure, None)
    unknown = line("tdc", 5.0, 50.0, measurable=None)
    assert bests([PLAIN, unknown], 35.0) == (unknown, None)


def test_the_table_of_a_level_has_every_method_and_the_page_its_parts():
    names = {"tdc": ["tdc a", "tdc b"], "int8": ["int8"], FEWER: ["plain, 12 steps"], "taylorseer": ["taylor"]}
    lines = [*LINES, line("int8", 12.0, 28.0)]
    table = levels.level_table(lines, names, 30.0)
    assert len(table) == 3 + len(names) and len({row.count("|") for row in table}) == 1
    assert table[3].startswith("| tdc | **tdc b** | 2.50× | 4.00 |")
    assert table[4].startswith("| int8 | none of 1 settings: the best has 28.0 dB | – |")
    bench = SimpleNamespace(about=PAGE, stem="levels")
    page = levels.page(bench, lines, names, ["what it comes to"])
    assert [f"## At least {level:g} dB" in page for level in LEVELS] == [True] * 3
    assert "- what it comes to" in page and "](levels.png)" in page and "| tdc c |" in page.replace("**", "")


def test_without_matplotlib_it_says_so_before_anything_is_measured(monkeypatch):
    def measured(*_):
        raise AssertionError("hours of work")

    bench = SimpleNamespace(steps=[24], options=Namespace(rows=None), measured=measured)
    monkeypatch.setattr(levels.Benchmark, "open", lambda *_, **__: bench)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as refusal:
        levels.main()
    assert str(refusal.value) == 'the plot needs matplotlib: pip install "dit-accel[bench]"'


def test_the_plot_is_a_picture():
    pytest.importorskip("matplotlib")
    assert levels.plot(LINES).startswith(b"\x89PNG")


@pytest.mark.parametrize("steps", [8, 24])
def test_every_method_and_every_rival_is_among_the_settings_once(steps):
    groups = families(steps)
    found = [baseline(steps), *(one for each in groups.values() for one in each)]
    assert len({one.name for one in found}) == len(distinct(found)) == len(found)
    assert set(groups) >= {"delta", "tdc", "flashblock", "pisa", "adaspa", "int8", "mixed", "combination", FEWER}
    assert {one.rival for one in found if one.rival is not None} == set(KNOWN_RIVALS)
    assert all(len(one.config.methods) > 1 for one in groups["combination"])
    assert min(len(groups[name]) for name in CACHES) >= len(groups["tdc"]), "a rival has as much choice as ours"
