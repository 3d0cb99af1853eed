"""The page that says what the recorder costs."""

from bench.recorder import _markdown


def test_the_page_has_the_interval():
    row = {"setting": "enabled", "seconds": 2.0, "share": 0.01, "least": -0.002, "most": 0.021}
    page = _markdown([row], {"command": "python -m bench.recorder", "weights": "0", "machine": {"cores": 2}})
    assert "| enabled | 2.00 | +1.0% (-0.2% to +2.1%) |" in page
