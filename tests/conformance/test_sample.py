"""The sample of the grid: what it leaves out is no pair, and its lists are those of the tests."""

from __future__ import annotations

import importlib

import pytest

from tests.conformance.cases import FAMILIES
from tests.conformance.sample import COMPANY, STORED, TESTS, pairs, sample


def test_every_pair_is_met() -> None:
    cells = {test: [(method.name, case.name) for method, case in pairs(test)] for test in TESTS}
    for test, method, case in sample():
        assert (method, case) in cells[test]
    families = {case.family for case in FAMILIES.values()}
    assert {case for _, _, case in sample()} == set(FAMILIES)
    assert {(test, FAMILIES[case].family) for test, _, case in sample()} == {
        (t, one) for t in TESTS for one in families
    }
    assert {(test, method) for test, method, _ in sample()} == {(t, method) for t in TESTS for method, _ in cells[t]}
    everywhere = {(method, FAMILIES[case].family) for method, case in cells[next(iter(TESTS))]}
    assert {(method, FAMILIES[case].family) for _, method, case in sample()} == everywhere
    # It runs with each commit.
    assert len(sample()) < 0.2 * sum(map(len, cells.values()))


@pytest.mark.parametrize(
    ("module", "names"), [("test_methods", TESTS), ("test_whole_grid", COMPANY), ("test_whole_grid_stored", STORED)]
)
def test_the_lists_are_those_of_the_tests(module: str, names: object) -> None:
    there = vars(importlib.import_module(f"tests.conformance.{module}"))
    assert [name for name in there if name.startswith("test_")] == list(names)  # type: ignore[call-overload]
