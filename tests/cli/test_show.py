"""The table of a benchmark and what stands below it, on made-up lines."""

from accel.cli.bench import show
from accel.measure.lines import lines_of
from tests.bench.test_comparison import HALF as B
from tests.bench.test_comparison import PLAIN as A
from tests.bench.test_comparison import cell
from tests.bench.test_levels import FAST, PLAIN, SLOW, line

PARTS = {"text_encoder": 0.25, "denoiser": 3.0, "vae": 0.75, "other": 0.0, "loop": 3.1}


def test_what_failed_has_its_exception_in_its_row_and_all_of_it_below():
    short = line("short", None, None, "rival", errors=["ValueError: no"])
    error = f"RuntimeError: {'very ' * 30}long"
    long = line("long", None, None, "rival", errors=[error])
    lines = [PLAIN, FAST, short, long]
    headings, rows = show.cells(lines)
    assert headings[1] == "speed-up"
    assert [row[1] for row in rows[:3]] == ["1.00×", "2.50×", "failed: ValueError: no"]
    assert rows[3][1].startswith("failed: RuntimeError: very very") and rows[3][1].endswith("…")
    assert len(rows[3][1]) == 60
    assert f"long: failed: {error}" in show.remarks(lines)


def test_what_ran_has_its_speed_up_also_where_a_larger_batch_failed():
    some = line("some", 5.0, 40.0, errors=["RuntimeError: no memory"])
    _, rows = show.cells([PLAIN, some])
    assert rows[1][1] == "2.00×" and "some: failed: RuntimeError: no memory" in show.remarks([PLAIN, some])


def full(one, **given):
    """A line with its seconds by part and its rates."""
    spans = {part: {"median": seconds, "p20": seconds, "p80": seconds} for part, seconds in PARTS.items()}
    return {
        **one,
        "seconds": {**spans, **one["seconds"]},
        "steps_per_second": 2.5,
        "tokens_per_second": 1234.5,
        **given,
    }


def test_a_second_table_has_the_seconds_by_part_and_the_rates():
    ratio = {"ms_ssim": {"mean": 0.99, "least": 0.98}, "flicker_ratio": {"mean": 1.1, "most": 1.2}}
    headings, rows = show.parts([full(PLAIN), full(FAST, quality=ratio)])
    assert dict(zip(headings, rows[1], strict=True)) == {
        "setting": "tdc b",
        "text encoder s": "0.25",
        "denoiser s": "3.00",
        "VAE s": "0.75",
        "steps/s": "2.50",
        "tokens/s": "1,234",
        "MS-SSIM (least)": "0.990 (0.980)",
        "flicker (most)": "1.10 (1.20)",
    }
    assert "denoiser" not in show.cells([full(PLAIN), full(FAST)])[0]
    text = show.table([full(PLAIN), full(FAST)])
    assert text[3] == "" and text[4].startswith("setting  text encoder s") and text[-1] == ""
    assert len(show.table([PLAIN, FAST])) == 3, "no second table where there is nothing in it"


def test_why_a_figure_is_missing_is_said_once():
    weights = "no weights were given: pass accel.measure's Lpips with the folder that has them"
    missing = {"lpips": weights, "vmaf": "ffmpeg has no libvmaf", "motion": "two frames", "motion_ratio": "two frames"}
    lines = [{**PLAIN, "missing": {"motion": "two frames"}}, *({**one, "missing": missing} for one in (SLOW, FAST))]
    assert [one for one in show.remarks(lines) if one.startswith("not measured")] == [
        "not measured: motion, motion beside the baseline's: two frames",
        "not measured: LPIPS: no weights were given; accel bench takes their folder with --lpips",
        "not measured: VMAF: ffmpeg has no libvmaf",
    ]
    lines[1] = {**SLOW, "missing": {"ssim": "too small"}}
    assert "not measured of tdc a: SSIM: too small" in show.remarks(lines)


def test_a_line_knows_why_no_clip_has_a_figure():
    reasons = {"vmaf": "no libvmaf", "lpips": "no weights", "psnr_db": "there is no reference to compare with"}
    cells = {one.name: [cell(one, seed, vmaf=None, reasons=reasons) for seed in range(2)] for one in (A, B)}
    cells["half"].append(cell(B, 2, vmaf=None, lpips=0.1, reasons={"vmaf": "no libvmaf"}))
    first, second = lines_of([A, B], A, lambda one: cells[one.name])
    assert first["missing"] == {} and second["missing"] == {"vmaf": "no libvmaf"}
