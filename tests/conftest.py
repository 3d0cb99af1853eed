import pytest

from tests import interpreter_process


def pytest_configure(config: pytest.Config) -> None:
    interpreter_process.register(config)
