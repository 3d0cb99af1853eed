"""What stands below the pictures of a comparison."""

import numpy as np
import pytest

from accel.cli.bench.pictures import clips
from accel.cli.bench.results import Results
from accel.measure.cells import Cell, Place, Store
from accel.measure.trial import Setting
from tests.bench.test_comparison import cell

PLAIN, OTHER = Setting("plain"), Setting("other", steps=4)
FIRST, SECOND = Place("a", 0), Place("b", 0)


def label(folder, first, second=None, warmup=2):
    """Below the first clip of the other setting, with what is wrong with its first and its second."""
    store = Store.open(folder, {})
    store.write_header({}, {})
    for setting, place, given in (
        (PLAIN, FIRST, {"psnr_db": None}),
        (PLAIN, SECOND, {"psnr_db": None}),
        (OTHER, FIRST, first),
        (OTHER, SECOND, second or {}),
    ):
        store.add(Cell(setting.fingerprint, place, cell(setting, warmup_steps=warmup, **given).figures))
        store.keep_clip(setting, place, np.zeros((1, 4, 4, 3), np.uint8))
    results = Results((PLAIN, OTHER), PLAIN, (FIRST, SECOND), 12.0, {}, {}, store)
    place, ((plain, _), (other, _)) = clips(results, results.lines())
    assert place == FIRST and plain == "plain, 1.0 s"
    return other


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({}, "other, 1.0 s, 30.0 dB"),
        ({"psnr_db": 9.0}, "other, 1.0 s, 9.0 dB, not the same picture"),
        ({"flags": {"frozen": "stands still in 100 % of the steps"}}, "other, 1.0 s, 30.0 dB, stands still"),
        ({"flags": {"flicker": "flickers 9 times as much"}}, "other, 1.0 s, 30.0 dB, flickers"),
        ({"flags": {"broken": "not finite"}, "psnr_db": None}, "other, 1.0 s, broken"),
        ({"repeats": False}, "other, 1.0 s, 30.0 dB, other bits the second time"),
    ],
)
def test_a_clip_is_told_what_is_wrong_with_itself(tmp_path, first, words):
    assert label(tmp_path / "b", first) == words


def test_a_clip_with_nothing_wrong_is_not_told_the_fault_of_another(tmp_path):
    assert label(tmp_path / "b", {}, {"psnr_db": 9.0}) == "other, 1.0 s, 30.0 dB, no speed-up is said"
    assert label(tmp_path / "c", {}, warmup=0) == "other, 1.0 s, 30.0 dB, no speed-up is said"
