"""Runs the tests marked `interpreter` in their own process, in which Triton interprets its kernels on the CPU.

Triton decides when a kernel is decorated whether it will be compiled or interpreted, so one process cannot do
both. One such process runs all the marked tests of a file that a pytest run has selected, and each appears in that
run under its own name, with its own traceback. A marked test that the process did not run fails. With
TRITON_INTERPRET=1 already set, the marked tests run in place.

A process for each file, so that workers of pytest-xdist, which take whole files (`--dist loadfile`), share them out.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

MARK = "interpreter"
_REPORTS = "ACCEL_INTERPRETER_REPORTS"


def register(config: pytest.Config) -> None:
    """To be called from `pytest_configure`."""
    config.addinivalue_line("markers", f"{MARK}: runs Triton kernels in their interpreter, in its own process")
    if os.environ.get("TRITON_INTERPRET") != "1":
        config.pluginmanager.register(_Parent())
        return
    from tests import triton_interpreter

    triton_interpreter.install()
    if _REPORTS in os.environ:
        config.pluginmanager.register(_Child(config, Path(os.environ[_REPORTS])))


class _Parent:
    def __init__(self) -> None:
        self._reports: dict[Path, dict[str, list[pytest.TestReport]]] = {}
        self._output = ""
        # How many tests ran, how many were to run, and seconds; a worker's are added to those of the run.
        self._totals: list[float] = [0, 0, 0.0]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if not _is_marked(item):
            return None
        if item.path not in self._reports:
            together = [other for other in item.session.items if other.path == item.path and _is_marked(other)]
            self._reports[item.path] = self._run([other.nodeid for other in together], item.config)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports[item.path].get(item.nodeid) or [self._did_not_run(item)]:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        # What the test before it left set up for this one, as it would for any of its file or folder.
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[MARK] = self._totals

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._add(getattr(node, "workeroutput", {}).get(MARK, (0, 0, 0.0)))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        ran, selected, seconds = self._totals
        if selected:
            count = f"{ran} of {selected} selected tests"
            terminalreporter.write_line(f"Triton interpreter: {count} ran in their own processes, {seconds:.0f} s")

    def _add(self, more: Sequence[float]) -> None:
        self._totals = [total + other for total, other in zip(self._totals, more, strict=True)]

    def _run(self, nodeids: list[str], config: pytest.Config) -> dict[str, list[pytest.TestReport]]:
        started = time.perf_counter()
        reports: dict[str, list[pytest.TestReport]] = {}
        with tempfile.TemporaryDirectory() as folder:
            wanted, written = Path(folder, "tests.txt"), Path(folder, "reports.jsonl")
            wanted.write_text("\n".join(nodeids), encoding="utf-8")
            written.touch()
            where = [f"--rootdir={config.rootpath}", *(["-c", str(config.inipath)] if config.inipath else [])]
            child = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *where, f"@{wanted}"],
                cwd=config.rootpath,
                env=os.environ | {"TRITON_INTERPRET": "1", _REPORTS: str(written)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self._output = f"exit status {child.returncode}\n{child.stdout[-4000:]}"
            for line in written.read_text(encoding="utf-8").splitlines():
                report = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
                reports.setdefault(report.nodeid, []).append(report)
        reports = {nodeid: phases for nodeid, phases in reports.items() if phases[-1].when == "teardown"}
        ran = sum(nodeid in reports for nodeid in nodeids)
        self._add((ran, len(nodeids), time.perf_counter() - started))
        return reports

    def _did_not_run(self, item: pytest.Item) -> pytest.TestReport:
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=f"did not run to its end in the interpreter's process, which ended with {self._output}",
            when="call",
        )


class _Child:
    def __init__(self, config: pytest.Config, reports: Path) -> None:
        self._config = config
        self._reports = reports

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with self._reports.open("a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")


def _is_marked(item: pytest.Item) -> bool:
    return item.get_closest_marker(MARK) is not None
