"""The table of a benchmark and what stands below it, on made-up lines."""

from accel.cli.bench import show
from tests.bench.test_levels import FAST, PLAIN, line


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
