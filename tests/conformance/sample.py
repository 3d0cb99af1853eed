"""Which tests of the grid there are, and what of it a run without `--grid=whole` takes.

The sample is pairwise: every test meets every family, on each of its pipelines in turn, every test every method that it
is for, and every method every family that does not refuse it.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

from tests.conformance.cases import FAMILIES, METHODS, MethodCase
from tests.tiny_pipelines import TinyCase

# The tests of `test_methods.py`, each for the methods whose case has these values; the first is what a pair of a method
# and a family is tried with that no other test has met.
TESTS: dict[str, dict[str, Any]] = {
    "test_acts_and_comes_off_without_a_trace": {},
    "test_second_run_equals_a_fresh_pipeline": {},
    "test_identity_setting_gives_the_plain_bits": {"has_identity": True},
    "test_exception_in_the_middle_leaves_the_next_run_clean": {},
    "test_disable_right_after_an_exception": {},
    "test_changed_size_in_the_next_run": {},
    "test_identical_inputs_give_identical_outputs": {"exact_on_equal_inputs": True},
}
# Those of `test_whole_grid.py` and of `test_whole_grid_stored.py`, which no sample has; a pipeline may have nothing for
# them, which they say.
COMPANY: dict[str, dict[str, Any]] = {
    "test_model_offload": {},
    "test_group_offload": {},
    "test_lora": {},
    "test_compiled_repeated_blocks": {},
    "test_the_other_form_of_guidance": {},
}
STORED: dict[str, dict[str, Any]] = {
    "test_lora_loaded_while_enabled": {"quantizes": True},
    "test_fusing_is_refused": {"quantizes": True},
    "test_stored_saved_and_read_again": {"quantizes": True},
}
WHOLE_ONLY = COMPANY | STORED


def is_for(test: str, method: MethodCase) -> bool:
    """Whether a test is for a method."""
    return all(getattr(method, trait) == value for trait, value in (TESTS | WHOLE_ONLY).get(test, {}).items())


def pairs(test: str) -> list[tuple[MethodCase, TinyCase]]:
    """All cells of the grid that a test is for: the method as it is on the pipeline's family, and the pipeline."""
    cells = [(method.on(case.family), case) for case in FAMILIES.values() for method in METHODS.values()]
    return [(method, case) for method, case in cells if method is not None and is_for(test, method)]


@cache
def sample() -> frozenset[tuple[str, str, str]]:
    """The names of test, method and pipeline of all that the sample has."""
    found: list[tuple[str, str, str]] = []
    met: Counter[tuple[str, str]] = Counter()
    # Those that are for few methods choose first.
    tests = sorted(TESTS, key=lambda test: len(pairs(test)))
    there = {
        test: {case.name: [m.name for m, c in pairs(test) if c is case] for case in FAMILIES.values()} for test in tests
    }
    families: dict[str, list[str]] = {}
    for case in FAMILIES.values():
        families.setdefault(case.family, []).append(case.name)
    for names in families.values():
        taken: set[str] = set()
        for number, test in enumerate(tests):
            name = names[number % len(names)]
            # First what the test has never met, then what the family has not, then what the test has met least.
            method = min(there[test][name], key=lambda each: (met[test, each] > 0, each in taken, met[test, each]))
            taken.add(method)
            met[test, method] += 1
            found.append((test, method, name))
        first = next(iter(TESTS))
        # The family's methods that no test has met yet.
        found += [(first, method, names[0]) for method in there[first][names[0]] if method not in taken]
    return frozenset(found)
