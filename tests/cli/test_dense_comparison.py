"""What `--compare-dense` says of two runs: by the same rules as a benchmark."""

from types import SimpleNamespace

import numpy as np
import pytest

from accel.cli.dense_comparison import compare, lines
from accel.cli.once import Done

REQUEST = SimpleNamespace(model="other", prompt="a fox")
# A square that moves to the right by two pixels a frame.
MOVING = np.zeros((6, 48, 48, 3), np.float32)
for number, frame in enumerate(MOVING):
    frame[16:32, 4 + 2 * number : 20 + 2 * number] = 0.8


def told(frames, plain=MOVING, loop=2.0):
    comparison = compare(Done(frames, None, 2.0, loop, None), Done(plain, None, 4.0, 3.0, None), REQUEST)
    return comparison, lines(comparison)[-1]


def test_one_pair_tells_no_spread():
    comparison, line = told(MOVING + 0.01)
    assert (comparison["speedup"], comparison["loop_speedup"], comparison["unsaid"]) == (2.0, 1.5, [])
    assert line.startswith("speed-up 2.00× (1 pair: spread unknown), in the loop 1.50×, PSNR 40.0 dB, SSIM 0.")
    assert told(MOVING + 0.01, loop=None)[1].startswith("speed-up 2.00× (1 pair: spread unknown), PSNR")
    comparison, line = told(MOVING)
    assert comparison["same_bits"] and comparison["psnr_db"] is None and ", same bits as the plain run; one" in line


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (MOVING[[0] * len(MOVING)], "frozen in 1 of 1 clips: stands still"),
        (np.full_like(MOVING, np.nan), "broken in 1 of 1 clips"),
        (1 - MOVING, "1 of 1 clips show something else than the plain run"),
    ],
)
def test_of_what_is_no_result_no_speed_up_is_said(frames, reason):
    comparison, line = told(frames)
    assert [comparison[name] for name in ("speedup", "speedup_text", "loop_speedup")] == [None] * 3
    assert line.startswith("no speed-up is said: ") and reason in line and "one run each" in line


def test_a_plain_run_that_is_broken_is_told():
    comparison, line = told(MOVING, plain=np.full_like(MOVING, np.nan))
    assert comparison["speedup"] is None
    assert line.startswith("no speed-up is said: the plain run: broken in 1 of 1 clips: ") and "no PSNR" in line
