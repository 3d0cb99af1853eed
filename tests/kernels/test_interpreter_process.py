"""The process for interpreted tests reports passes and failures as they are, and what it did not run as failed."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CONFTEST = """
from tests import interpreter_process

def pytest_configure(config):
    interpreter_process.register(config)
"""

TESTS = """
import os

import pytest

@pytest.mark.interpreter
@pytest.mark.parametrize("number", [1, 2])
def test_passes(number):
    assert os.environ["TRITON_INTERPRET"] == "1"

def test_in_the_first_process():
    assert "TRITON_INTERPRET" not in os.environ

@pytest.mark.interpreter
def test_fails():
    assert 6 * 9 == 42

@pytest.mark.interpreter
def test_ends_the_process():
    os._exit(7)

@pytest.mark.interpreter
def test_comes_too_late():
    pass
"""


def test_each_outcome_arrives_under_its_own_name(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_sample.py").write_text(TESTS)
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-rN", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    outcomes = dict(re.findall(r"^test_sample\.py::(\S+) (PASSED|FAILED)", done.stdout, re.MULTILINE))
    assert outcomes == {
        "test_in_the_first_process": "PASSED",
        "test_passes[1]": "PASSED",
        "test_passes[2]": "PASSED",
        "test_fails": "FAILED",
        "test_ends_the_process": "FAILED",
        "test_comes_too_late": "FAILED",
    }, done.stdout + done.stderr
    assert done.returncode == 1
    assert "assert (6 * 9) == 42" in done.stdout
    assert done.stdout.count("did not run to its end in the interpreter's process, which ended with exit status 7") == 2
    assert "Triton interpreter: 3 of 5 selected tests ran in their own process" in done.stdout
