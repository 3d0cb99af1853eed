"""The record of the grid: what the table says of lines, and that a run goes on where it was stopped."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conformance.record import Record, lines, markdown, table

STATE = {"commit": "abc", "modified": False, "torch": "2"}


def line(family: str, method: str, what: str, ended: str = "passed", reason: str = "") -> dict[str, Any]:
    name = f"{what}[{family}-{method}]"
    told = {"what": what, "family": family, "method": method, "ended": ended, "reason": reason}
    return {"test": name, **told, "state": STATE}


def test_the_table_says_what_works_what_does_not_and_why() -> None:
    found = [
        line("wan", "delta", "test_acts"),
        line("wan", "delta", "test_lora", "failed", "boom"),
        line("wan", "delta", "test_lora"),
        line("flux", "pisa", "test_acts", "failed", "other bits"),
        line("dit", "tdc", "test_acts"),
        line("dit", "tdc", "test_lora", "skipped", "no LoRA"),
    ]
    cells = table(found)
    assert cells["wan"]["delta"] == {"state": "works", "tests": 2, "notes": []}
    assert cells["flux"]["pisa"] == {"state": "fails", "tests": 0, "notes": ["acts: other bits"]}
    assert cells["dit"]["tdc"] == {"state": "works", "tests": 1, "notes": ["lora: no LoRA"]}
    assert cells["wan"]["pisa"]["state"] == "not run"
    stopped = table([line("wan", "delta", "test_acts"), line("wan", "delta", "test_lora", "not run")])
    assert stopped["wan"]["delta"]["state"] == "not run"
    skipped = table([line("wan", "delta", "test_lora", "skipped", "no LoRA")])
    assert skipped["wan"]["delta"]["state"] == "not run"
    refused = cells["sana"]["pisa"]
    assert refused["state"] == "refused" and "attention" in refused["notes"][0]
    text = markdown(cells, STATE)
    assert "| wan | works | not run |" in text
    (number,) = (row.partition(".")[0] for row in text.splitlines() if row.endswith(". acts: other bits"))
    assert f"**fails** [{number}]" in text


def test_a_run_leaves_out_what_passed_in_the_same_state(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.conformance.record.state_of_the_code", lambda: STATE)
    path = tmp_path / "record.jsonl"
    kept = [line("wan", "delta", "test_a"), line("wan", "delta", "test_b", "failed"), line("wan", "delta", "test_c")]
    kept[2]["state"] = {**STATE, "commit": "older"}
    path.write_text("".join(json.dumps(one) + "\n" for one in kept) + '{"half')
    items = [SimpleNamespace(nodeid=one["test"]) for one in kept]
    dropped: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: dropped.extend(items))
    Record(path).pytest_collection_modifyitems(SimpleNamespace(hook=hook), items)  # type: ignore[arg-type]
    assert [one.nodeid for one in items] == ["test_b[wan-delta]", "test_c[wan-delta]"]
    assert [one.nodeid for one in dropped] == ["test_a[wan-delta]"]
    assert len(lines(path)) == 3 and path.read_text().endswith("}\n")


def test_what_is_left_to_do_is_written_down_before_it_begins(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.conformance.record.state_of_the_code", lambda: STATE)
    path = tmp_path / "record.jsonl"
    params = {"family": SimpleNamespace(name="wan"), "method": SimpleNamespace(name="delta")}
    callspec = SimpleNamespace(params={"case": params["family"], "method": params["method"]})
    item = SimpleNamespace(
        nodeid="test_a[wan-delta]", name="test_a[wan-delta]", originalname="test_a", callspec=callspec
    )
    config = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: None))
    for _ in range(2):
        items = [item]
        Record(path).pytest_collection_modifyitems(config, items)  # type: ignore[arg-type]
        assert items == [item]
    assert [one["ended"] for one in lines(path)] == ["not run", "not run"]
    assert table(lines(path))["wan"]["delta"]["state"] == "not run"
