"""`import accel` and the command line's help are quick: neither loads torch or anything built on it."""

import json
import subprocess
import sys

import pytest

from tests.repository.tree import ROOT

HEAVY = ("torch", "diffusers", "transformers", "triton", "accelerate")

COMMAND = """
import sys
sys.argv = ["accel", *{arguments!r}]
from accel.cli import main
try:
    code = main()
except SystemExit as stop:
    code = stop.code
assert not code, code
"""


def loaded(code: str) -> tuple[list[str], str]:
    """Which heavy packages a fresh interpreter holds after some code, and what the code printed."""
    report = f"\nimport json, sys\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1]), done.stdout


def test_the_check_sees_torch() -> None:
    assert "torch" in loaded("import torch")[0]


def test_import_is_lean() -> None:
    assert loaded("import accel\naccel.__version__\ndir(accel)")[0] == []


# With an option of each that its help has.
COMMANDS = {
    "generate": "--prompt",
    "bench": "--setting",
    "compare": "--setting",
    "profile": "--prompt",
    "calibrate": "--prompt",
    "report": "--output",
}


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_lean(arguments: list[str]) -> None:
    heavy, printed = loaded(COMMAND.format(arguments=arguments))
    assert heavy == []
    assert "Usage" in printed
    assert COMMANDS.get(arguments[0], "generate") in printed
