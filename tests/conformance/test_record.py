"""The record of the grid: what the table says of lines, and that a run goes on where it was stopped."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conformance import record
from tests.conformance.cases import FAMILIES, METHODS
from tests.conformance.record import Record, lines, main, markdown, table
from tests.conformance.sample import TESTS, WHOLE_ONLY, is_for

STATE = {"code": "abc", "torch": "2", "diffusers": "0.42", "transformers": "5", "peft": "0.17"}


def line(family: str, method: str, what: str, ended: str = "passed", reason: str = "") -> dict[str, Any]:
    name = f"{what}[{family}-{method}]"
    told = {"what": what, "family": family, "method": method, "ended": ended, "reason": reason}
    return {"test": name, **told, "commit": "f00", "state": STATE}


def whole(family: str, method: str) -> list[dict[str, Any]]:
    """Lines of a cell whose tests all passed."""
    return [line(family, method, test) for test in (*TESTS, *WHOLE_ONLY) if is_for(test, METHODS[method])]


def item(name: str) -> Any:
    params = {"case": SimpleNamespace(name="wan"), "method": SimpleNamespace(name="delta")}
    callspec = SimpleNamespace(params=params)
    return SimpleNamespace(
        nodeid=f"{name}[wan-delta]", name=name, originalname=name, callspec=callspec, user_properties=[]
    )


def config(dropped: list[Any] | None = None) -> Any:
    gone: list[Any] = [] if dropped is None else dropped
    return SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: gone.extend(items)))


@pytest.fixture(autouse=True)
def _one_state(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "of_the_code" not in request.node.name:
        monkeypatch.setattr(record, "state_of_the_code", lambda: STATE)
        monkeypatch.setattr(record, "commit", lambda: "f00")


def test_the_table_says_what_works_what_does_not_and_why() -> None:
    found = [
        line("wan", "delta", "test_lora", "failed", "boom"),
        *whole("wan", "delta"),
        line("flux", "pisa", "test_acts", "failed", "other bits"),
        *whole("dit", "tdc"),
        line("dit", "tdc", "test_lora", "skipped", "no LoRA"),
    ]
    cells = table(found)
    assert cells["wan"]["delta"] == {"state": "works", "tests": len(whole("wan", "delta")), "notes": []}
    assert cells["flux"]["pisa"] == {"state": "fails", "tests": 0, "notes": ["acts: other bits"]}
    assert cells["dit"]["tdc"]["state"] == "works" and cells["dit"]["tdc"]["notes"] == ["lora: no LoRA"]
    assert cells["wan"]["pisa"]["state"] == "not run"
    refused = cells["sana"]["pisa"]
    assert refused["state"] == "refused" and "attention" in refused["notes"][0]
    text = markdown(cells, STATE, "f00")
    assert "commit f00, torch 2, diffusers 0.42, transformers 5, peft 0.17" in text and "wan22_i2v" in text
    assert "| wan | works | not run |" in text
    (number,) = (row.partition(".")[0] for row in text.splitlines() if row.endswith(". acts: other bits"))
    assert f"**fails** [{number}]" in text


@pytest.mark.parametrize("gone", [*TESTS, *WHOLE_ONLY])
def test_a_cell_works_only_where_every_test_passed(gone: str) -> None:
    method = "delta" if is_for(gone, METHODS["delta"]) else "int8"
    others = [one for one in whole("wan", method) if one["what"] != gone]
    assert table(others)["wan"][method]["state"] == "not run"
    stopped = table([*others, line("wan", method, gone, "not run")])
    assert stopped["wan"][method]["state"] == "not run"
    skipped = table([*others, line("wan", method, gone, "skipped", "no LoRA")])
    assert skipped["wan"][method]["state"] == ("works" if gone in WHOLE_ONLY else "not run")


def test_a_run_leaves_out_what_passed_in_the_same_state(tmp_path: Any) -> None:
    path = tmp_path / "record.jsonl"
    kept = [line("wan", "delta", "test_a"), line("wan", "delta", "test_b", "failed"), line("wan", "delta", "test_c")]
    kept[2]["state"] = {**STATE, "code": "older"}
    path.write_text("".join(json.dumps(one) + "\n" for one in kept) + '{"half')
    items = [item("test_a"), item("test_b"), item("test_c")]
    dropped: list[Any] = []
    Record(path).pytest_collection_modifyitems(config(dropped), items)
    assert [one.nodeid for one in items] == ["test_b[wan-delta]", "test_c[wan-delta]"]
    assert [one.nodeid for one in dropped] == ["test_a[wan-delta]"]
    assert [one["ended"] for one in lines(path)][3:] == ["not run", "not run"]


def test_what_is_left_to_do_is_written_down_before_it_begins(tmp_path: Any) -> None:
    path = tmp_path / "record.jsonl"
    for _ in range(2):
        items = [item("test_a")]
        Record(path).pytest_collection_modifyitems(config(), items)
        assert len(items) == 1
    assert [one["ended"] for one in lines(path)] == ["not run", "not run"]
    assert table(lines(path))["wan"]["delta"]["state"] == "not run"


def test_several_processes_write_each_line_once(tmp_path: Any) -> None:
    path = tmp_path / "record.jsonl"
    starter, first, second = (Record(path, worker) for worker in (None, "gw0", "gw1"))
    items: dict[str, list[Any]] = {}
    for worker, one in (("gw0", first), ("gw1", second)):
        items[worker] = [item("test_a"), item("test_b")]
        one.pytest_collection_modifyitems(config(), items[worker])
    assert [one["ended"] for one in lines(path)] == ["not run", "not run"]
    trouble = SimpleNamespace(reprcrash=SimpleNamespace(message="AssertionError: other bits\nassert 1 == 2"))
    for worker, one, outcome, why in (("gw0", first, "passed", None), ("gw1", second, "failed", trouble)):
        place = 0 if worker == "gw0" else 1
        done = items[worker][place]
        report = pytest.TestReport(
            done.nodeid, ("", 0, ""), {}, outcome, why, "call", user_properties=done.user_properties
        )
        for told in (one, starter):
            told.pytest_runtest_logreport(report)
    ends = [(one["what"], one["ended"], one["reason"]) for one in lines(path)[2:]]
    assert ends == [("test_a", "passed", ""), ("test_b", "failed", "AssertionError: other bits")]


def test_a_table_is_written_of_a_whole_run_only(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page, results, path = tmp_path / "page.md", tmp_path / "results.json", tmp_path / "record.jsonl"
    monkeypatch.setattr(record, "TABLE", page)
    monkeypatch.setattr(record, "RESULTS", results)
    monkeypatch.setattr(record, "_refusal", lambda case, method: "refused")
    path.write_text("".join(json.dumps(one) + "\n" for one in whole("wan", "delta")))
    with pytest.raises(SystemExit, match="not all is run"):
        main([str(path)])
    assert not page.exists() and not results.exists()
    with pytest.raises(SystemExit):
        main([str(path), "--partial"])
    assert "| wan | works | not run |" in page.read_text()
    everything = [
        one
        for name, case in FAMILIES.items()
        for m in METHODS.values()
        if m.on(case.family)
        for one in whole(name, m.name)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in everything))
    main([str(path)])
    assert "not run" not in page.read_text() and json.loads(results.read_text())["commit"] == "f00"


def test_the_state_of_the_code_is_that_of_its_files(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "ROOT", tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "accel").mkdir()
    (tmp_path / "accel" / "a.py").write_text("a")
    (tmp_path / "README.md").write_text("a")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    first = record.state_of_the_code()
    assert set(first) == {"code", "torch", "diffusers", "transformers", "peft"}
    (tmp_path / "README.md").write_text("b")
    subprocess.run([*git, "commit", "-qam", "b"], check=True)
    assert record.state_of_the_code() == first and "with changes" not in record.commit()
    (tmp_path / "accel" / "b.py").write_text("b")
    untracked = record.state_of_the_code()
    assert untracked != first and record.commit().endswith(" with changes")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "c"], check=True)
    assert record.state_of_the_code() == untracked
    (tmp_path / "accel" / "a.py").write_text("c")
    assert record.state_of_the_code() != untracked
