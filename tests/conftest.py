import os
from pathlib import Path

# The tensors here are small, so that a second thread costs more than it gives; also for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests import interpreter_process


def pytest_configure(config: pytest.Config) -> None:
    interpreter_process.register(config)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--grid", choices=["sample", "whole"], default="sample", help="of methods and families")
    parser.addoption("--record", type=Path, help="file that keeps how the tests of the grid end, to go on from there")
