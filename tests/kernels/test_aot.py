"""Every Triton kernel, compiled for GPUs that need not be there: it fits, spills as it may, accesses widely."""

import ast
import itertools
import re
from pathlib import Path

import pytest

from accel.kernels.nvfp4_linear import NATIVE
from tests.aot import ARCHS, NARROW_LOAD, SHARED_LIMIT, WIDE_LOAD, WIDE_STORE, Compiled, compile_cases
from tests.attention_problem import DTYPES
from tests.kernels import aot_cases
from tests.kernels.aot_cases import ATTENTION

KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.fixture(scope="module")
def compiled() -> list[Compiled]:
    return compile_cases(aot_cases.__name__)


@pytest.mark.parametrize(
    ("case", "arch"),
    [pytest.param(case, a, id=f"{case.name}-sm_{a}") for case in aot_cases.CASES for a in case.archs],
)
def test_kernels_of_a_case(compiled, case, arch):
    kernels = [kernel for kernel in compiled if (kernel.case, kernel.arch) == (case.name, arch)]
    assert {kernel.kernel for kernel in kernels} >= {*case.requires, *case.forbids} and kernels
    for kernel in kernels:
        assert kernel.spilled <= case.spills.get(arch, 0), kernel
        assert kernel.shared <= SHARED_LIMIT[arch], kernel
        assert not kernel.missing and not kernel.unwanted, kernel


def test_nothing_may_spill_where_registers_are_plenty():
    assert not [case.name for case in aot_cases.CASES if any(case.spills.get(arch, 0) for arch in (90, 100, 103))]


def test_every_kernel_of_a_number_format_is_compiled_for_all_that_runs_it():
    """Each architecture, and sm_103 where NVFP4 is native."""
    compiled: dict[str, set[int]] = {}
    for case in aot_cases.CASES:
        compiled.setdefault(case.name.partition("-on-")[0], set()).update(case.archs)
    formats = ("rotate", "quantize_int8", "quantize_nvfp4", "dequantize_nvfp4", "nvfp4_to_int8", "nvfp4_linear")
    special = ("quantize_nvfp4-tiled", "nvfp4_linear-1920")
    missing = {
        name: set(ARCHS) - archs for name, archs in compiled.items() if name.startswith(formats) and name not in special
    }
    assert not any(missing.values())
    assert compiled["quantize_nvfp4-tiled"] == set(NATIVE) and compiled["nvfp4_linear-5120"] >= set(NATIVE)


def test_each_pair_of_the_properties_of_attention_is_compiled():
    cells = [(arch, beside, 64 if size <= 64 else 128, dtype, block) for arch, beside, size, dtype, block in ATTENTION]
    every = [set(values) for values in zip(*cells, strict=True)]
    assert every[0] == set(ARCHS) and every[2] == {64, 128} and every[3] == set(DTYPES.values())
    for one, other in itertools.combinations(range(len(every)), 2):
        missing = set(itertools.product(every[one], every[other])) - {(cell[one], cell[other]) for cell in cells}
        assert not missing


def test_every_kernel_that_is_launched_has_a_case(compiled):
    launched = set()
    for path in KERNELS.glob("*/triton.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                launched.add(ast.unparse(node.func.value))
    assert launched == {kernel.kernel for kernel in compiled}


def test_the_patterns_tell_wide_accesses_from_narrow_ones():
    wide = ["ld.global.v4.b32", "ld.global.L1::evict_first.v4.f32", "ld.global.nc.v2.u64", "ld.global.v8.b32"]
    narrow = ["ld.global.b32", "ld.global.v2.b32", "ld.global.v4.b16", "ld.global.L1::evict_first.b16"]
    for text in wide:
        assert re.search(WIDE_LOAD, text) and not re.search(NARROW_LOAD, text)
    for text in narrow:
        assert re.search(NARROW_LOAD, text) and not re.search(WIDE_LOAD, text)
    assert re.search(WIDE_STORE, "st.global.v4.b32") and not re.search(WIDE_STORE, "st.global.b32")
