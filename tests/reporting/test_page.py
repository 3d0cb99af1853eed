"""The page of a benchmark and what it is made of: the front, the grids, the text."""

from html.parser import HTMLParser

import numpy as np
import pytest

from accel.methods.base import registered
from accel.reporting import front
from accel.reporting.advice import Advice
from accel.reporting.bounded_film import bounded
from accel.reporting.grids import of_values
from accel.reporting.heat import Heat, heats
from accel.reporting.heat_values import unmeasured, values_of
from accel.reporting.page import Page, Section, render
from accel.reporting.side_by_side import film_of_films, sheet_with_differences
from accel.reporting.video import mp4


def line(name, ratio, decibels, *, config=None, rival=None, baseline=False, measurable=True):
    return {
        "setting": name,
        "baseline": baseline,
        "config": {"config": config, "rival": rival, "steps": None},
        "speed_up": None if ratio is None else {"ratio": ratio, "measurable": measurable},
        "quality": {} if decibels is None else {"psnr_db": {"mean": decibels}},
    }


LINES = [
    line("plain", None, None, baseline=True),
    line("a", 1.5, 40.0, config={}),
    line("b", 2.0, 35.0, rival="magcache"),
    line("c", 1.9, 30.0),
    line("broken", None, 8.0, config={}),
    line("same bits", 1.0, None, config={}),
    line("d", 2.0, 34.0, config={}),
]


def test_the_front_holds_what_none_other_beats_in_both():
    found = front.points(LINES)
    assert {point.name: point.kind for point in found} == {"a": "method", "b": "rival", "c": "fewer", "d": "method"}
    assert [point.name for point in front.front(found)] == ["a", "b"]


def test_what_is_no_faster_than_the_baseline_is_no_front():
    noise = line("noise", 1.003, 55.0, config={}, measurable=False)
    found = front.points([*LINES, line("slow", 0.9, 50.0, config={}), line("even", 1.0, 60.0, rival="flex"), noise])
    assert [point.name for point in front.front(found)] == ["a", "b"]


def test_the_plot_names_those_that_are_asked_for_and_says_what_lies_above_it():
    found = front.points([*LINES, line("flex", 0.5, 129.0, rival="flex")])
    svg = front.draw(found, "svg", {"a", "flex"})
    assert b">a<" in svg and b">b<" not in svg and b">flex (129 dB)<" in svg


def test_the_plot_is_the_same_for_the_same_figures():
    found = front.points(LINES)
    svg = front.draw(found, "svg")
    assert svg == front.draw(found, "svg") and b">magcache<" not in svg and b">b<" in svg
    assert front.draw(found, "png").startswith(b"\x89PNG")


def test_a_name_with_dollar_signs_is_no_formula():
    assert b"a$_$" in front.draw(front.points([line("a$_$", 1.5, 40.0)]), "svg")


def test_grids_are_what_the_summary_says():
    summary = {
        "settings": {"tdc": {"threshold": 0.1, "max_skips": 3}},
        "runs": [{"blocks": {"tdc": {"transformer": {"cond": {"computed": ["0-2", "1"], "reused": ["", "0, 2"]}}}}}],
    }
    (grid,) = heats(summary)
    assert grid.cells == [["computed", "reused"], ["computed", "computed"], ["computed", "reused"]]
    assert grid.words == ["computed", "reused"]
    assert grid.levers["reused"] == "cache.threshold=0.1, cache.max_skips=3"
    assert heats({"settings": {}, "runs": []}) == []


@pytest.mark.parametrize(("density", "named"), [(0.25, True), (None, False)])
def test_what_moves_a_reused_call_alone_and_beside_a_sparse_attention(density, named):
    settings = {"interval": 3, "density": density, "dense_steps": density}
    blocks = {"flashblock": {"transformer": {"cond": {"refreshed": ["0", ""], "reused": ["", "0"]}}}}
    summary = {"settings": {"flashblock": settings}, "runs": [{"blocks": blocks}]}
    (grid,) = heats(summary)
    assert grid.words == ["refreshed", "reused"] and "cache.interval=3" in grid.levers["reused"]
    assert ("cache.density=0.25" in grid.levers["reused"]) == named and "None" not in str(grid.levers)
    spot = ("transformer", "cond", 0, 1)
    assert ("raise cache.density (0.25)" in Advice(summary).toward_plain(spot)) == named
    assert ("lower cache.density (0.25)" in Advice(summary).cheaper(spot)) == named


@pytest.mark.parametrize("name", registered())
def test_levers_are_settings_of_the_method(name):
    config = registered()[name].config
    named = {field for fields in config.levers.values() for field in fields}
    assert set(config.toward_plain) <= named <= set(config.model_fields)
    assert config.approximate and config.approximate <= set(config.levers)


# Two blocks in three steps: computed densely, then with a sparse attention in the second block, then skipped.
SUMMARY = {
    "settings": {
        "pisa": {"density": 0.25, "dense_steps": 0.3, "dense_layers": 1, "search_steps": None},
        "tdc": {"threshold": 0.1, "max_skips": 3, "early": 0.35, "dense_steps": 0.1, "dense_final_steps": 0.02},
    },
    "runs": [
        {
            "blocks": {
                "pisa": {"transformer": {"cond": {"dense": ["0-1", "0", ""], "sparse": ["", "1", ""]}}},
                "tdc": {"transformer": {"cond": {"computed": ["0-1", "0-1", ""], "reused": ["", "", "0-1"]}}},
            },
            "density": {"pisa": {"transformer": {"cond": ["- - -", "- 0.2031 -"]}}},
        }
    ],
}
MEASURED = {
    "maps": [
        {
            "denoiser": "transformer",
            "branch": "cond",
            "density": None,
            "error": [[0.0, 0.0, 0.5], [0.0, 0.125, 0.5]],
            "seconds": [[0.03, 0.02, 0.001], [0.03, 0.01, None]],
        }
    ],
    "unmeasured": {},
}
KEEP_DENSE = "raise attention.density (0.25), attention.dense_steps (0.3) or attention.dense_layers (1)"
COMPUTE = (
    "lower cache.threshold (0.1) or cache.max_skips (3), or raise cache.early (0.35), cache.dense_steps (0.1) or "
    "cache.dense_final_steps (0.02)"
)


def test_each_value_names_the_settings_that_change_it_and_the_direction():
    density, error, seconds = values_of(SUMMARY, MEASURED)
    assert density.values == [[1.0, 1.0, None], [1.0, 0.2031, None]]
    assert density.advice[1][1] == f"To raise it, {KEEP_DENSE}"
    assert density.advice[0][0] == "To lower it, lower attention.dense_steps (0.3) or attention.dense_layers (1)"
    assert error.advice[1] == ["", f"To lower it, {KEEP_DENSE}", f"To lower it, {COMPUTE}"]
    # A sparse call is shortened by a lower density, or by being skipped; not by what decides that it is sparse.
    assert seconds.advice[1][1] == (
        "To shorten it, lower attention.density (0.25), cache.early (0.35), cache.dense_steps (0.1) or "
        "cache.dense_final_steps (0.02), or raise cache.threshold (0.1) or cache.max_skips (3)"
    )
    assert seconds.advice[0][2] == "", "a skipped block takes next to no time, and nothing makes it less"
    assert error.hottest(2) == [([0, 1], 2), ([1], 1)] and density.hottest(3) == [([1], 1)]


def test_what_was_not_measured_is_said():
    assert [one.measure for one in values_of(SUMMARY, None)] == ["density"]
    assert "accel bench --heat" in unmeasured(SUMMARY, None)[0]
    assert unmeasured(SUMMARY, {"maps": [], "unmeasured": {"error": "offloaded"}}) == ["No error: offloaded."]
    empty = {"settings": {}, "runs": []}
    assert values_of(empty, None) == [] and unmeasured(empty, None) == []


def test_more_is_darker_and_nothing_is_the_lightest():
    _, error, seconds = (of_values(one) for one in values_of(SUMMARY, MEASURED))

    def light(grid, block, step):
        (fill,) = (cell.fill for cell in grid.cells if (cell.block, cell.step) == (block, step))
        return sum(bytes.fromhex(fill[1:]))

    assert light(error, 0, 0) > light(error, 1, 1) > light(error, 1, 2)
    assert light(seconds, 0, 2) > light(seconds, 1, 1) > light(seconds, 0, 1) > light(seconds, 0, 0)
    assert len(seconds.cells) == 5 and "0 to 30 ms" in seconds.legend[0].text
    assert error.hot[0] == f"blocks 0 to 1, step 3: error 0.5. To lower it, {COMPUTE}"


def test_a_film_in_a_page_is_bounded_and_says_what_it_lost():
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
    whole = mp4(noise, 8)
    assert bounded(noise, 8, whole, len(whole)) == (whole, "")
    hard = len(mp4(noise, 8, crf=24))
    found = {most: bounded(noise, 8, whole, most) for most in (hard, hard - 1, 1)}
    assert [lost for _, lost in found.values()] == [
        "all of it, compressed harder",
        "all of it, at 50% of its width and height, and compressed harder",
        "its first 1 of 12 frames, at 25% of its width and height, and compressed harder",
    ]
    assert all(len(film) <= most for most, (film, _) in found.items() if most > 1)


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network():
    grid = Heat("tdc", "transformer", "cond", [["computed", "reused"]], {"reused": "cache.threshold=0.1"})
    page = Page(
        title="<demo>",
        identity=[("command", "accel bench -s 'a & b'")],
        headings=["setting", "speed-up"],
        rows=[["a & b", "1.50× ± 0.02"]],
        parts=(["setting", "VAE s"], [["a & b", "0.20"]]),
        remarks=["a: better than plain"],
        plot_svg=front.draw(front.points(LINES), "svg"),
        sheet_png=b"\x89PNG",
        film_mp4=b"film",
        shown='"a circle", seed 0',
        sections=[
            Section("a & b", [("tdc", "threshold", "0.1")], [grid], [], values_of(SUMMARY, MEASURED), ["No x: y."]),
            Section("plain", []),
        ],
    )
    text = render(page)
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert "<td>0.20</td>" in text and text.count("<table>") == 3
    assert "&lt;demo&gt;" in text and "a &amp; b" in text and "<demo>" not in text
    assert "block 0, step 2: reused. What changes it: cache.threshold=0.1" in text
    assert f"block 1, step 2: density 0.203. To raise it, {KEEP_DENSE}" in text and "No x: y." in text
    assert [
        text.count(f'<button type="button" data-view="{view}"') for view in ("tdc", "density", "error", "time")
    ] == ([1] * 4)


def test_differences_are_drawn_around_gray_and_films_stand_beside_each_other():
    first = np.full((3, 64, 64, 3), 100, np.uint8)
    second = first + np.uint8(4)
    sheet = np.asarray(sheet_with_differences([("plain", first), ("other", second)]).convert("RGB"))
    assert (sheet == 128 + 8 * 4).all(-1).sum() >= 3 * 64 * 64
    film = film_of_films([("plain", first), ("a label that is far too long for it", second), ("third", first)])
    assert film.shape[0] == 3 and (film[0] == 104).all(-1).sum() >= 64 * 64
