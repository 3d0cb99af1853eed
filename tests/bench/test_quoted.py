"""README and docs say what the results say."""

import json
import re

import pytest

from bench import quoted
from bench.quoted import DOCUMENTS, RESULTS, TABLES, renewed


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_the_results(path):
    text = path.read_text(encoding="utf-8")
    assert renewed(text) == text, "run python -m bench.quoted"


def test_a_row_that_failed_is_quoted_as_that(monkeypatch):
    def read(name):
        plain, *others = json.loads((RESULTS / "cpu" / "tdc.json").read_text())["rows"]
        gone = dict.fromkeys(("loop_speed_up", "block_calls", "motion"))
        empty = {"psnr_db": [], "ssim": [], "prompt_accuracy": {}, "errors": ["ImportError: no"], "config": [{}]}
        return {"rows": [plain, {**others[0], **gone, **empty, "setting": "dbcache"}]}

    monkeypatch.setattr(quoted, "_read", read)
    assert "| 24 | dbcache | failed | - | - | - | - | - | 8.7 MB |" in quoted.caches()
    assert len(quoted.reuse()) == 3


def test_every_table_is_quoted_somewhere_and_a_change_shows():
    whole = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert set(re.findall(r"<!-- quoted: (\w+) -->", whole)) == set(TABLES)
    old = "<!-- quoted: sparse_attention -->\n| 1 |\n<!-- end -->"
    assert renewed(old) != old
