"""`accel generate --prompts`: one output for each line, made once, over as many starts as it takes."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from accel.cli.job.claims import LOCK_FILE, Claims
from accel.cli.once import call_once
from accel.pipelines import demo
from accel.pipelines.loading import weights_hash
from tests.cli.conftest import Accel, listing, sha256, side_file

SMALL = ("--size", "quick", "--steps", "2", "--height", "32", "--width", "32", "--num-frames", "5")
JOB = ("generate", "--prompts", "p.txt", *SMALL, "--preset", "none", "-o", "out")
LINES = ("a red circle moving left", '{"prompt": "a blue ring growing", "seed": 9, "output": "ring"}', "a green square")
NAMES = ("0001-a-red-circle-moving-left", "ring", "0003-a-green-square")


def write(folder: Path, *lines: str) -> None:
    (folder / "p.txt").write_text("\n".join(lines) + "\n")


def outputs(folder: Path) -> dict[str, int | None]:
    """All files of the job's folder but the one of its locks."""
    return {name: when for name, when in listing(folder / "out").items() if name != LOCK_FILE}


@pytest.fixture
def done(make: Accel, tmp_path: Path) -> dict[str, int | None]:
    """A job that is done: its files."""
    write(tmp_path, *LINES)
    make(*JOB)
    return outputs(tmp_path)


def test_each_line_has_its_output_and_a_side_file_that_replays(make: Accel, tmp_path: Path) -> None:
    write(tmp_path, "# three", *LINES[:2], "", '{"prompt": "a green square", "num_inference_steps": 4}')
    arguments = [{"--preset": "--cache", "none": "delta"}.get(word, word) for word in JOB]
    result = make(*arguments, "--seed", 40, "--set", "dense_steps=0", "--format", "json")
    names = ["0002-a-red-circle-moving-left", "ring", "0005-a-green-square"]
    assert set(outputs(tmp_path)) == {f"{name}{suffix}" for name in names for suffix in (".mp4", ".json")}
    sides = [side_file(tmp_path / "out" / f"{name}.mp4") for name in names]
    # The first line would have had 40.
    assert [side["seed"] for side in sides] == [41, 9, 44]
    assert [side["call"]["num_inference_steps"] for side in sides] == [2, 2, 4]
    assert all(len(side["summary"]["runs"]) == 1 for side in sides)

    data = result.json
    assert [line["line"] for line in data["lines"]] == [2, 3, 5]
    assert [line["state"] for line in data["lines"]] == ["made"] * 3
    assert data["lines"][1]["output"] == str(tmp_path / "out" / "ring.mp4")
    counts = [side["summary"]["runs"][0]["counts"]["delta"] for side in sides]
    assert data["totals"]["methods"]["delta"]["reused"] == sum(count.get("reused", 0) for count in counts) > 0
    assert "2 of 3: line 3: ring.mp4, " in result.err and "; 1 left, about " in result.err
    assert "3 lines of p.txt in out/: 3 made" in result.err

    again = make("generate", "--replay", "out/0005-a-green-square.json", "-o", "again.mp4", "--format", "json")
    assert again.json["replay"]["same_bits"]
    # The second run of a job that is accelerated once has the bits of a run of its own.
    make(
        *arguments[:1], "--prompt", "a blue ring growing", *SMALL, "--seed", 9, "--set", "dense_steps=0", "-o", "a.mp4"
    )
    assert sha256(tmp_path / "a.mp4") == sides[1]["output"]["frames_sha256"]


def test_started_again_it_makes_what_is_missing(
    make: Accel, tmp_path: Path, done: dict[str, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "ring.mp4").unlink()
    (tmp_path / "out" / f".{NAMES[2]}.0123abcd.part.mp4").write_text("half")
    write(tmp_path, *LINES, "a white square")
    hashed: list[Path] = []
    for module in ("accel.cli.job.run", "accel.pipelines.loading"):
        monkeypatch.setattr(f"{module}.weights_hash", lambda folder: (hashed.append(folder), weights_hash(folder))[1])
    result = make(*JOB)
    assert hashed == [demo.WEIGHTS]
    assert "p.txt: 4 lines into out/, 2 done before, 2 to make" in result.out
    assert "4 lines of p.txt in out/: 2 made, 2 there before" in result.out
    now = outputs(tmp_path)
    assert set(now) == {*done, "0004-a-white-square.mp4", "0004-a-white-square.json"}
    assert {name for name in done if done[name] != now[name]} == {"ring.mp4", "ring.json"}

    # With nothing to make, nothing is loaded.
    monkeypatch.setattr("accel.cli.job.run.load_ready", None)
    make(*JOB)
    assert outputs(tmp_path) == now


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"line": '{"prompt": "a blue ring growing", "seed": 10, "output": "ring"}'},
            "with seed 9; the line asks for 10",
        ),
        ({"line": '{"prompt": "a blue ring", "seed": 9, "output": "ring"}'}, 'asks for "a blue ring"'),
        ({"options": ["--steps", "3"]}, "num_inference_steps 2; the line asks for 3 (2 more lines are like that)"),
        ({"options": ["--preset", "fast"]}, 'with methods []; the line asks for ["pisa", "tdc"] (2 more'),
        ({"side": {"weights_hash": "0123456789abcdef"}}, "with weights with the hash 0123456789abcdef; now it is"),
        ({"side": {"kind": "something"}}, "does not describe a result"),
        ({"side": {"job": None}}, "ring.json was not written by --prompts"),
        ({"gone": "ring.json"}, "ring.mp4 is there without the ring.json that says what it is"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_was_made_otherwise_is_refused_and_made_again_on_request(
    change: dict[str, Any], says: str, accel: Accel, tmp_path: Path, done: dict[str, int | None]
) -> None:
    if "line" in change:
        write(tmp_path, LINES[0], change["line"], LINES[2])
    if "side" in change:
        path = tmp_path / "out" / "ring.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change["side"]))
    if "gone" in change:
        (tmp_path / "out" / change["gone"]).unlink()
    before, options = outputs(tmp_path), change.get("options", [])
    refused = accel(*JOB, *options)
    assert refused.code == 2 and len(refused.err.splitlines()) == 1
    assert says in refused.err and "or add --overwrite to make such lines again" in refused.err, refused.err
    assert refused.err.startswith(f"accel: error: p.txt, line {1 if options else 2}: ")
    assert outputs(tmp_path) == before

    again = accel(*JOB, *options, "--overwrite")
    assert again.code == 0 and " is made again: " in again.out
    now = outputs(tmp_path)
    changed = {name for name in now if now[name] != before.get(name)}
    assert changed == (set(done) if options else {"ring.mp4", "ring.json"})
    assert accel(*JOB, *options).code == 0 and outputs(tmp_path) == now


def test_a_line_with_other_words_is_made_and_the_old_one_is_named(
    make: Accel, tmp_path: Path, done: dict[str, int | None]
) -> None:
    write(tmp_path, *LINES[:2], "a green ring")
    result = make(*JOB)
    assert "accel: note: 1 result in out of no line that p.txt has now, such as 0003-a-green-square.json" in result.err
    assert set(outputs(tmp_path)) == {*done, "0003-a-green-ring.mp4", "0003-a-green-ring.json"}


def test_a_line_that_fails_is_reported_and_tried_again(
    accel: Accel, make: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(pipe: Any, request: Any, arguments: dict[str, Any]) -> Any:
        if "ring" in request.prompt:
            raise RuntimeError("the fan\nfell off")
        return call_once(pipe, request, arguments)

    write(tmp_path, *LINES)
    with monkeypatch.context() as patch:
        patch.setattr("accel.cli.job.run.call_once", failing)
        for start in range(2):
            result = accel(*JOB, "--format", "json")
            assert result.code == 1
            assert [line["state"] for line in result.json["lines"]] == [
                *(("made", "failed", "made") if start == 0 else ("there before", "failed", "there before"))
            ]
            errors = [line for line in result.err.splitlines() if line.startswith("accel: error: ")]
            assert errors == [
                "accel: error: p.txt, line 2: the fan fell off",
                "accel: error: 1 of 3 lines are not made; the same command tries them again",
            ]
            assert ("line 2 failed last time and is tried again: the fan fell off" in result.err) == (start == 1)
            assert "RuntimeError: the fan" in (tmp_path / "out" / "ring.error.txt").read_text()
            assert not (tmp_path / "out" / "ring.mp4").exists()
    make(*JOB)
    assert set(outputs(tmp_path)) == {f"{name}{suffix}" for name in NAMES for suffix in (".mp4", ".json")}


def test_a_full_disk_stops_the_job(accel: Accel, make: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, *LINES)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = accel(*JOB)
    assert result.code == 1 and not outputs(tmp_path)
    *notes, first, last = result.err.splitlines()
    assert notes == [
        "accel: note: that line 1 failed could not be written down: cannot write "
        f"out/{NAMES[0]}.error.txt: no space left on device"
    ]
    assert first.startswith("accel: error: p.txt, line 1: cannot write out/0001")
    assert last == (
        "accel: error: 3 of 3 lines are not made, 2 of them because nothing could be written; "
        "the same command tries them again"
    )
    assert "3 lines of p.txt in out/: 1 failed, 2 not begun" in result.out
    make(*JOB)


def test_an_interruption_keeps_what_is_done(
    accel: Accel, make: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(pipe: Any, request: Any, arguments: dict[str, Any]) -> Any:
        if "ring" in request.prompt:
            raise KeyboardInterrupt
        return call_once(pipe, request, arguments)

    write(tmp_path, *LINES)
    with monkeypatch.context() as patch:
        patch.setattr("accel.cli.job.run.call_once", interrupted)
        result = accel(*JOB)
    assert result.code == 130
    assert result.err.splitlines() == [
        "accel: note: 1 line more settled in this start; the same command goes on from here",
        "accel: interrupted",
    ]
    assert set(outputs(tmp_path)) == {f"{NAMES[0]}.mp4", f"{NAMES[0]}.json"}
    make(*JOB)


def test_what_another_job_is_making_is_left_to_it_and_made_when_it_dies(make: Accel, tmp_path: Path) -> None:
    write(tmp_path, *LINES)
    (tmp_path / "out").mkdir()
    read, told = os.pipe()
    other = os.fork()
    if other == 0:
        with Claims(tmp_path / "out").claim(f"{NAMES[0]}.mp4") as mine:
            os.write(told, b"1" if mine else b"0")
            signal.pause()
        os._exit(0)
    try:
        assert select.select([read], [], [], 60)[0] and os.read(read, 1) == b"1"
        third = tmp_path / "out" / f"{NAMES[2]}.mp4"

        def kill() -> None:
            while not third.exists() and not stop.wait(0.05):
                pass
            stop.wait(0.5)
            os.kill(other, signal.SIGKILL)

        stop = threading.Event()
        thread = threading.Thread(target=kill)
        thread.start()
        result = make(*JOB)
        thread.join()
    finally:
        os.waitpid(other, 0)
    said = [line for line in result.out.splitlines() if "line 1" in line]
    assert said[0] == "waiting for line 1, which another accel is making"
    assert said[1].startswith("3 of 3: line 1: 0001") and len(said) == 2


REFUSED: list[tuple[list[str], list[str], str]] = [
    (["{"], [], "p.txt, line 1: this is not valid JSON"),
    ([*LINES, '{"prompt": "x", "num_frames": 4}'], [], "p.txt, line 4: num_frames=4 is not one more than a multiple"),
    (['{"prompt": "x", "height": 40}'], [], "p.txt, line 1: height=40 is not a multiple of 16"),
    (
        ['{"prompt": "x", "num_inference_steps": 0}'],
        [],
        "line 1: --steps 0 is not possible; the nearest that works is 1",
    ),
    (['{"prompt": "x", "guidance_scale": 1e999}'], [], "line 1: --guidance-scale inf is not a finite number"),
    (['{"prompt": "x", "seed": -1}'], [], "line 1: --seed -1 is not possible; the nearest that works is 0"),
    (['{"prompt": "x", "negative_prompt": "y", "guidance_scale": 1}'], [], "line 1: --negative-prompt does nothing"),
    (['{"prompt": "x", "image": "p.txt"}'], [], "p.txt is not an image that can be read"),
    (['{"prompt": "x", "image": "dot.png"}'], [], "line 1: WanPipeline takes no --image"),
    (['{"prompt": "x", "output": "a/b"}'], [], "\"output\" 'a/b' is not a plain file name"),
    (['{"prompt": "x", "output": ".a"}'], [], "\"output\" '.a' is not a plain file name"),
    (['{"prompt": "x", "output": "a.avi"}'], [], "'a.avi' is of a kind that accel does not write: use .mp4 or .gif"),
    (['{"prompt": "x", "output": "a.jpg"}'], [], "'a.jpg' cannot hold a video: use .mp4"),
    (['{"prompt": "x", "output": "a.gif", "num_frames": 1}'], [], "'a.gif' cannot hold an image: use .png"),
    ([json.dumps({"prompt": "x", "output": "ä" * 100})], [], "has 200 bytes; the most that works is 180"),
    (
        ['{"prompt": "x", "output": "A.gif"}', '{"prompt": "y", "output": "a"}'],
        [],
        "line 2: its output would be a.mp4, and line 1 has A.gif; give one of them another",
    ),
    (["x", '{"prompt": "y", "output": "0001-x.mp4"}'], [], "line 2: its output would be 0001-x.mp4, and line 1 has"),
    (["x"], ["--prompt", "x"], "--prompt and --prompts both say what to show"),
    (["x"], ["--compare-dense"], "--compare-dense compares one run"),
    (["x"], ["--replay", "dot.png"], "leave --prompts out"),
    (["x"], ["-o", "a.mp4"], "--prompts makes many files, and a.mp4 names one: give a folder, as in -o a/"),
    (["x"], ["-o", "p.txt"], "p.txt is not a folder"),
    (["x"], ["-o", "/proc/none"], "cannot write into /proc/none"),
    (["x"], ["-o", " "], "--output is empty"),
    (["x"], ["--prompts", "gone.txt"], "cannot read the prompts gone.txt: no such file"),
    (["x"], ["--steps", "0"], "accel: error: --steps 0 is not possible"),
    (["x"], ["--height", "40"], "accel: error: height=40 is not a multiple of 16"),
    (["", "x"], ["--seed", str(2**63 - 1)], "line 2: --seed 9223372036854775808 is not possible"),
]


@pytest.mark.parametrize(("lines", "options", "says"), REFUSED)
def test_refused(lines: list[str], options: list[str], says: str, accel: Accel, tmp_path: Path) -> None:
    from PIL import Image

    write(tmp_path, *lines)
    Image.new("RGB", (8, 8)).save(tmp_path / "dot.png")
    before = listing(tmp_path)
    result = accel(*JOB, *options)
    assert result.code == 2 and len(result.err.splitlines()) == 1, result.err
    assert says in result.err, result.err
    assert listing(tmp_path) == before


def test_without_output_the_folder_is_called_as_the_file(make: Accel, tmp_path: Path) -> None:
    write(tmp_path, "  Ein ROTER Kreis / ça va?! " + "very " * 20, "赤い円", '{"prompt": "!", "output": "v1.5 a.GIF"}')
    make(*JOB[:-2])
    assert set(listing(tmp_path / "outputs" / "p")) - {LOCK_FILE} == {
        *(f"0001-ein-roter-kreis-ça-va-very-very-very.{suffix}" for suffix in ("mp4", "json")),
        *(f"0002-赤い円.{suffix}" for suffix in ("mp4", "json")),
        *("v1.5 a.GIF", "v1.5 a.json"),
    }
