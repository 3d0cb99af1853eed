"""README and docs say what the results say."""

import re

import pytest

from bench.quoted import DOCUMENTS, TABLES, renewed


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_the_results(path):
    text = path.read_text(encoding="utf-8")
    assert renewed(text) == text, "run python -m bench.quoted"


def test_every_table_is_quoted_somewhere_and_a_change_shows():
    whole = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert set(re.findall(r"<!-- quoted: (\w+) -->", whole)) == set(TABLES)
    old = "<!-- quoted: sparse_attention -->\n| 1 |\n<!-- end -->"
    assert renewed(old) != old
