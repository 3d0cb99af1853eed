"""Compiles Triton kernels for NVIDIA GPUs that are not there, exactly as their operations would launch them.

A case calls an operation's Triton form with tensors on the `meta` device. Triton's own launcher then specialises
the kernel (types, alignment, divisibility by 16, arguments equal to 1), compiles it to a cubin for the
architecture, and stops before the launch. This happens in processes of its own, because Triton must not be
interpreting there and because a failure in the compiler can end the process.
"""

import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Shared memory that one block may use, in bytes, by compute capability.
SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 103: 232_448, 120: 101_376}
# What kernels are compiled for unless a case says otherwise: sm_103 has the instructions of sm_100 but for those of
# integers, and cases where it matters.
ARCHS = (80, 89, 90, 100, 120)

# One 128-bit or 256-bit access, as PTX names it.
_WIDE = r"[\w.:]*\.(v2\.\w64|v4\.\w32|v8\.\w16|v4\.\w64|v8\.\w32)"
WIDE_LOAD = r"ld\.global" + _WIDE
WIDE_STORE = r"st\.global" + _WIDE
NARROW_LOAD = r"ld\.global(?!" + _WIDE + r")[\w.:]*"


@dataclass(frozen=True)
class Case:
    """One call of an operation's Triton form.

    Attributes:
        name: unique, for the test's id.
        launch: makes the call with `meta` tensors; it is given the compute capability (80, 90, ...).
        requires: by kernel name, patterns that the PTX must have.
        forbids: by kernel name, patterns that the PTX must not have.
        archs: the compute capabilities to compile for.
        spills: bytes that the kernels may store to and load from local memory, by compute capability; 0 elsewhere.
    """

    name: str
    launch: Callable[[int], object]
    requires: dict[str, tuple[str, ...]]
    forbids: dict[str, tuple[str, ...]]
    archs: tuple[int, ...] = ARCHS
    spills: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """What one kernel became in one case: memory in bytes, and what is wrong with its PTX."""

    case: str
    arch: int
    kernel: str
    registers: int
    spilled: int
    shared: int
    missing: list[str]
    unwanted: list[str]


def compile_cases(module: str, processes: int = 2) -> list[Compiled]:
    """Compile every case of `module.CASES` for all of its architectures, in that many processes side by side.

    Raises:
        RuntimeError: a kernel did not compile; the message ends with what the compiler said.
    """
    with tempfile.TemporaryDirectory() as cache:
        env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {
            "TRITON_CACHE_DIR": cache,
            "TRITON_ALWAYS_COMPILE": "1",
            "TRITON_DUMP_PTXAS_LOG": "1",
        }
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.aot", module, str(index), str(processes)],
                cwd=Path(__file__).parents[1],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(processes)
        ]
        # Both pipes of a worker are drained while the others go on.
        outputs = [worker.communicate() for worker in workers]
    compiled = []
    for worker, (out, err) in zip(workers, outputs, strict=True):
        if worker.returncode != 0:
            raise RuntimeError(f"a compiling process ended with status {worker.returncode}:\n{err[-6000:]}")
        compiled += [Compiled(**json.loads(line)) for line in out.splitlines()]
    return compiled


class _Target:
    """In the place of Triton's driver: it knows which GPU to compile for, and there is none to launch on."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        # Triton keeps compiled kernels by device number, so each architecture is a device of its own.
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def _compile_share(module: str, index: int, processes: int) -> None:
    cases: list[Case] = importlib.import_module(module).CASES
    jobs = [(arch, case) for case in cases for arch in case.archs]
    for arch, case in sorted(jobs, key=lambda job: job[0])[index::processes]:
        for compiled in _compile(case, arch):
            print(json.dumps(asdict(compiled)), flush=True)


_logs: dict[str, str] = {}


def _compile(case: Case, arch: int) -> list[Compiled]:
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    launched = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        # A kernel that an earlier case compiled in the same way comes back without a log.
        _logs.setdefault(kernel.hash, log.getvalue())
        launched.append((self.__name__, kernel))

    driver.set_active(_Target(arch))
    JITFunction.run = compile_only
    try:
        case.launch(arch)
    finally:
        JITFunction.run = run
    return [_read(case, arch, name, kernel) for name, kernel in launched]


def _read(case: Case, arch: int, name: str, kernel: Any) -> Compiled:
    log, ptx = _logs[kernel.hash], kernel.asm["ptx"]
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or spills is None or not kernel.asm["cubin"]:
        raise RuntimeError(f"{name} for sm_{arch}: the assembler gave no report:\n{log}")
    return Compiled(
        case=case.name,
        arch=arch,
        kernel=name,
        registers=int(registers[1]),
        spilled=int(spills[1]) + int(spills[2]),
        shared=kernel.metadata.shared,
        missing=[pattern for pattern in case.requires.get(name, ()) if not re.search(pattern, ptx)],
        unwanted=[pattern for pattern in case.forbids.get(name, ()) if re.search(pattern, ptx)],
    )


if __name__ == "__main__":
    _compile_share(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
