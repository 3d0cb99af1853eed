"""Imports go downwards only, in every module of the library and the benchmarks."""

import pytest

from tests.repository.imports import FLOORS, floor, violations
from tests.repository.tree import modules

KNOWN = {
    "accel",
    "accel.session",
    "accel.kernels.delta.triton",
    "accel.methods.delta_cache",
    "accel.runtime.clock",
    "bench.delta",
}


def test_imports_go_downwards() -> None:
    found = modules()
    wrong = [
        line
        for module, path in found.items()
        for line in violations(path.read_text(), module, path.name == "__init__.py", set(found))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_floor_was_looked_at() -> None:
    assert {floor(module) for module in modules()} == set(FLOORS.values())


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("accel.kernels.delta.triton", "import accel.runtime.clock", "floor 2, above floor 0"),
        ("accel.kernels.delta.triton", "from ...runtime import clock", "floor 2, above floor 0"),
        ("accel.kernels.delta.triton", "from accel.errors import AccelError", "floor 1, above floor 0"),
        ("accel.kernels.delta.triton", "import diffusers.models", "is not torch"),
        ("accel.runtime.clock", "from accel.methods.delta_cache import rule", "floor 3, above floor 2"),
        ("accel.runtime.clock", "def f():\n    from ..methods import delta_cache", "floor 3, above floor 2"),
        ("accel.methods.delta_cache", "from accel import enable", "floor 4, above floor 3"),
        ("accel.methods.delta_cache", "from accel import session", "accel.session, which stands on floor 4"),
        ("accel.methods.delta_cache", "from .. import session", "accel.session, which stands on floor 4"),
        ("accel.methods.delta_cache", "import accel", "floor 4, above floor 3"),
        (
            "accel.methods.delta_cache",
            "import importlib\nimportlib.import_module('accel.session')",
            ":2 imports",
        ),
        ("accel.methods.delta_cache", "import_module('..session', __package__)", "floor 4, above floor 3"),
        ("accel.session", "if TYPE_CHECKING:\n    from accel.cli import main", "floor 5, above floor 4"),
        ("accel.cli", "import bench.delta", "not part of what is installed"),
        ("bench.delta", "from tests.tiny import video", "not part of what is installed"),
        ("accel.session", "from kernels.delta import subtract", "second identity"),
        ("accel.session", "import accel.wherever", "has no floor"),
        ("accel.wherever", "", "has no floor"),
    ],
)
def test_the_rule_sees(module: str, source: str, complaint: str) -> None:
    wrong = violations(source, module, False, KNOWN)
    assert len(wrong) == 1, wrong
    assert complaint in wrong[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "accel.kernels.delta.triton",
            "import math\nimport torch\nimport triton.language as tl\nfrom . import reference",
        ),
        (
            "accel.methods.delta_cache",
            "import diffusers\nfrom accel.errors import AccelError\nfrom ..runtime import clock",
        ),
        (
            "accel.session",
            "from accel import methods\nfrom accel.measure import timing\nfrom .kernels.delta import add",
        ),
        ("accel.cli", "import accel\nfrom accel import enable, session"),
        ("bench.delta", "import accel.kernels.delta.triton\nfrom bench import common"),
    ],
)
def test_the_rule_lets_pass(module: str, source: str) -> None:
    assert violations(source, module, False, KNOWN) == []


def test_a_package_counts_its_dots_from_itself() -> None:
    assert violations("from . import clock\nfrom .clock import Clock", "accel.runtime", True, KNOWN) == []
    assert violations("from .. import session", "accel.runtime", True, KNOWN) != []
