"""The order of interleaved runs and the arithmetic on durations; no duration itself is asserted."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

from accel.measure import timing
from accel.measure.timing import Timing, changes, interleaved, machine, ratio, take_turns


def recorded(names, **options):
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in names}
    return interleaved(cases, **options), "".join(calls)


def test_rounds_take_turns_and_each_begins_one_case_later():
    timings, calls = recorded("abc", warmup=1, repeats=3)
    assert calls == "abcbcacababc"
    assert list(timings) == ["a", "b", "c"]
    assert all(len(one.seconds) == 3 and min(one.seconds) >= 0 for one in timings.values())


def test_warm_up_may_be_left_out():
    timings, calls = recorded("ab", warmup=0, repeats=1)
    assert calls == "ab"
    assert len(timings["a"].seconds) == 1


def test_durations_go_to_the_case_that_took_them(monkeypatch):
    """A clock that only the cases move: a takes 1 s, then 2 s, b takes 10 s, then 20 s."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    pace = {"a": iter([100.0, 1.0, 2.0]), "b": iter([100.0, 10.0, 20.0])}

    def case(name):
        return lambda: now.__setitem__(0, now[0] + next(pace[name]))

    timings = interleaved({name: case(name) for name in pace}, warmup=1, repeats=2)
    assert timings == {"a": Timing((1.0, 2.0)), "b": Timing((10.0, 20.0))}


def test_another_clock_is_asked_instead():
    shown = iter([5.0, 1.0, 2.0])
    calls = []

    def clock(case):
        calls.append(case())
        return next(shown)

    assert interleaved({"a": lambda: "ran"}, warmup=1, repeats=2, clock=clock) == {"a": Timing((1.0, 2.0))}
    assert calls == ["ran"] * 3


def test_the_device_is_busy_while_the_host_launches(monkeypatch):
    events = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            events.append("record")

        def synchronize(self):
            events.append("wait")

        def elapsed_time(self, other):
            return 5.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: events.append(f"sleep {cycles / 2e9:.3f}"), raising=False)
    lead = SimpleNamespace(zero_=lambda: events.append("write"))
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: lead)
    assert timing._device_clock("cuda")(lambda: events.append("case")) == 0.005
    assert events == ["synchronize", "sleep 0.003", "write", "record", "case", "record", "wait"]


@pytest.mark.parametrize(
    ("seconds", "options", "rounds"),
    [(0.1, {}, 10), (5.0, {}, 6), (0.01, {}, 30), (5.0, {"rounds": 3}, 3), (0.1, {"seconds": 0.75}, 7)],
)
def test_there_are_as_many_rounds_as_there_is_time_for(monkeypatch, seconds, options, rounds):
    """Two cases that take so many seconds together."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    calls = []

    def case(name, share):
        def run():
            calls.append(name)
            now[0] += share * seconds

        return run

    wanted = {"seconds": 1.05, **options}
    timings = take_turns({"a": case("a", 0.25), "b": case("b", 0.75)}, "cpu", **wanted)
    assert [len(one.seconds) for one in timings.values()] == [rounds] * 2
    assert timings["b"].median == pytest.approx(0.75 * seconds)
    # Three calls of each before; then every round begins with another.
    assert "".join(calls[:10]) == "aaabbbabba"


def test_the_device_is_waited_for_around_each_case(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: events.append(str(device)))
    interleaved({"a": lambda: events.append("a")}, warmup=0, repeats=2, device="cuda:1")
    assert events == ["cuda:1", "a", "cuda:1"] * 2
    events.clear()
    interleaved({"a": lambda: events.append("a")}, warmup=0, repeats=1, device="cpu")
    assert events == ["a"]


def test_without_a_device_the_current_gpu_is_waited_for_if_there_is_one(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("wait"))
    for available, expected in ((True, ["wait", "a", "wait"]), (False, ["a"])):
        events.clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        interleaved({"a": lambda: events.append("a")}, warmup=0, repeats=1)
        assert events == expected


def test_a_case_that_fails_is_not_hidden():
    def broken():
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        interleaved({"a": broken})


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": -1}])
def test_impossible_rounds_are_refused(options):
    with pytest.raises(ValueError, match="cannot time"):
        interleaved({"a": lambda: None}, **options)
    with pytest.raises(ValueError, match="cannot time"):
        interleaved({})


def test_medians_percentiles_and_ratios():
    durations = Timing((5.0, 1.0, 4.0, 2.0, 3.0, 6.0))
    assert (durations.median, durations.p20, durations.p80) == (3.5, 2.0, 5.0)
    assert Timing((1.0, 2.0)).p20 == pytest.approx(1.2)
    assert Timing((7.0,)).p20 == Timing((7.0,)).p80 == 7.0
    assert ratio(Timing((9.0, 3.0, 4.0)), Timing((2.0,))) == 2.0
    with pytest.raises(ValueError, match="at least one"):
        Timing(())


def test_the_machine_is_described_in_plain_data():
    described = machine()
    assert json.loads(json.dumps(described)) == described
    assert described["torch"] == torch.__version__
    assert described["threads"] == torch.get_num_threads()
    assert described["cores"] >= 1 and described["device"] and described["diffusers"]


@pytest.fixture
def git(tmp_path, monkeypatch):
    """git in a folder that is taken for the checkout."""
    monkeypatch.setattr(timing, "_ROOT", tmp_path)

    def run(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    return run


def test_the_commit_is_that_of_the_checkout(tmp_path, git):
    assert machine("cpu")["commit"] is None and machine("cpu")["modified"] is None
    git("init")
    assert machine("cpu")["commit"] is None
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    assert machine("cpu")["commit"] == git("rev-parse", "HEAD")
    assert machine("cpu")["modified"] is False
    (tmp_path / "file").write_text("two")
    assert machine("cpu")["modified"] is True


def test_every_state_of_our_own_code_has_a_name(tmp_path, git):
    assert changes() is None
    git("init")
    for folder in ("accel", "docs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("one")
    git("add", ".")
    assert changes() is None
    git("commit", "-m", "one")
    found = [changes()]
    (tmp_path / "docs" / "file").write_text("two")
    assert found == [changes()] == [None]
    for name, text in (("file", "two"), ("file", "three"), ("new.py", "one"), ("new.py", "two"), ("other.py", "two")):
        (tmp_path / "accel" / name).write_text(text)
        found.append(changes())
    assert len(set(found)) == len(found)
    (tmp_path / "accel" / "other.py").unlink()
    assert changes() == found[-2]


def test_a_package_that_is_missing_has_no_version(monkeypatch):
    monkeypatch.setattr(timing, "_PACKAGES", ("torch", "surely-no-such-package"))
    assert machine("cpu")["surely-no-such-package"] is None
