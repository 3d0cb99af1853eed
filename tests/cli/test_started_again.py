"""`accel generate --prompts` started again: what it takes for done, what it refuses, and what it says meanwhile."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import WanPipeline
from PIL import Image

from accel.cli.job.claims import LOCK_FILE, Claims
from accel.cli.job.plan import Item, Plan, plan
from accel.cli.job.processes import Processes
from accel.cli.job.progress import Progress
from accel.cli.job.prompts import Line
from accel.cli.job.report import Outcome
from accel.cli.job.state import Found, Standing, look
from accel.cli.printing import Format
from accel.cli.request import Request
from accel.cli.run_generate import load_ready
from accel.config import AccelConfig
from accel.errors import AccelError
from accel.reporting import side_file
from tests.cli.conftest import Accel, listing, sha256
from tests.cli.test_many_prompts import JOB, NAMES, write

FIRST, SECOND = "a red circle moving left", '{"prompt": "a blue ring growing", "output": "ring"}'


def test_lines_may_bring_the_picture_that_the_model_needs(
    make: Accel, accel: Accel, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 48), colour).save(tmp_path / f"{colour}.png")
    lines = [json.dumps({"prompt": "a fox", "image": f"{colour}.png", "seed": 1}) for colour in ("red", "blue")]
    size = ("--steps", "1", "--height", "48", "--width", "64", "--num-frames", "5")
    job = ("generate", "--prompts", "p.txt", "-m", saved("wan_i2v"), *size, "--preset", "none", "-o", "out")
    write(tmp_path, *lines)
    make(*job)
    assert sha256(tmp_path / "out" / "0001-a-fox.mp4") != sha256(tmp_path / "out" / "0002-a-fox.mp4")
    write(tmp_path, lines[0], "a fox")
    refused = accel(*job)
    assert refused.code == 2
    assert refused.err.startswith("accel: error: p.txt, line 2: WanImageToVideoPipeline needs --image, which is not")


def planned(folder: Path, calibration: str) -> Item:
    """The one line of a job with a calibration, without its model."""
    config = AccelConfig(quantize={"method": "nvfp4", "calibration": calibration})
    lines = [Line(1, "a fox")]
    return plan(Path("p.txt"), lines, folder, Request("a fox", 0), WanPipeline, config, None).items[0]


def test_a_calibration_is_what_is_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cal.json").write_text("12")
    item = planned(tmp_path, "cal.json")
    empty: dict[str, Any] = {name: {} for name in ("call", "model", "options", "output", "versions")}
    data = {**empty, "prompt": "a fox", "seed": 0, "job": {"asked": dict(item.asked)}}
    item.side.write_text(side_file.to_json(data))
    item.media.write_text("a film")
    for name in ("cal.json", str(tmp_path / "cal.json")):
        assert look(planned(tmp_path, name)).standing is Standing.DONE
    Path("cal.json").write_text("13")
    found = look(planned(tmp_path, "cal.json"))
    assert found.standing is Standing.OTHER and "made with nvfp4.calibration " in found.why
    Path("cal.json").unlink()
    with pytest.raises(AccelError, match=r"^nvfp4 cannot read its calibration cal\.json: no such file or directory$"):
        planned(tmp_path, "cal.json")


def test_another_number_format_is_refused_before_anything_is_loaded(
    make: Accel, accel: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a job that nobody gave a --dtype comes to, on a device of another kind."""

    def load_in(dtype: str | None) -> None:
        for module in ("job.run", "run_generate"):
            monkeypatch.setattr(f"accel.cli.{module}.number_format", lambda *_: dtype)

    def refused(line: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("accel.cli.job.run.load_ready", None)
            result = accel(*JOB)
        assert result.code == 2 and f"{line} (--dtype says which) (1 more line is like that)" in result.err, result.err

    write(tmp_path, FIRST, SECOND)
    load_in("bfloat16")
    make(*JOB)
    load_in(None)
    refused(f"line 1: {NAMES[0]}.mp4 is there, made with dtype bfloat16; now it is the model's own")
    (tmp_path / "out" / "ring.mp4").unlink()
    refused(f"line 1: {NAMES[0]}.mp4 is there, made with dtype bfloat16; now it is the model's own")
    again = make(*JOB, "--overwrite")
    assert "p.txt: 2 lines into out/, 0 done before, 2 to make" in again.out
    assert again.out.count(" is made again: ") == 2 and "2 lines of p.txt in out/: 2 made" in again.out
    load_in("bfloat16")
    refused("made with dtype the model's own; now it is bfloat16")


def test_what_only_the_loaded_model_shows_is_told_too(
    make: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, FIRST, SECOND)
    make(*JOB)
    side = tmp_path / "out" / "ring.json"
    side.write_text(json.dumps(json.loads(side.read_text()) | {"weights_hash": "0123456789abcdef"}))
    # As for a model of the hub.
    monkeypatch.setattr("accel.cli.job.run._weights", lambda *_: None)
    out = make(*JOB, "--overwrite").out
    told = "line 2 is made again: ring.mp4 is there, made with weights with the hash 0123456789abcdef; now it is"
    assert out.index("2 done before, 0 to make") < out.index(told)
    assert "2 lines of p.txt in out/: 1 made, 1 there before" in out


def test_an_output_that_another_process_replaces_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = tuple(Item(n, Request(f"circle {n}", n), tmp_path / f"{n}.mp4", {}) for n in (1, 2, 3))
    for item in items:
        item.media.write_text("old")
    progress = Progress(Plan(Path("p.txt"), tmp_path, items), Processes(count=2), Format.HUMAN)
    progress.begin({item.number: Found(Standing.OTHER) for item in items})
    # Listed a moment ago, and moved aside since.
    names = os.listdir(tmp_path)
    monkeypatch.setattr(os, "listdir", lambda folder: names)
    items[1].media.unlink()
    progress.end(Outcome(1, "made", 1.0))
    assert capsys.readouterr().out.startswith("1 of 3: line 1: 1.mp4, 1.0 s; 2 left")


def test_what_the_methods_refuse_leaves_no_folder(accel: Accel, tmp_path: Path) -> None:
    write(tmp_path, FIRST)
    before = listing(tmp_path)
    plain = [word for word in JOB if word not in ("--preset", "none")]
    refused = accel(*plain, "--attention", "pisa", "--cache", "flashblock")
    assert refused.code == 2 and "would both stand for the blocks that are not exact" in refused.err
    assert listing(tmp_path) == before


@pytest.mark.parametrize("kind", ["a folder", "read only"])
def test_a_lock_file_that_cannot_be_written_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "a folder":
        (tmp_path / LOCK_FILE).mkdir()
    elif os.geteuid() == 0:
        pytest.skip("nothing is read only for the superuser")
    else:
        (tmp_path / LOCK_FILE).touch(mode=0o444)
    with pytest.raises(AccelError, match=r"^cannot write .*\.accel\.lock, by which .*: (is a dir|permission)") as error:
        Claims(tmp_path)
    assert "\n" not in str(error.value)


def test_hashing_the_weights_is_no_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def taking(seconds: float, result: Any) -> Callable[..., Any]:
        def call(*_: object) -> Any:
            nonlocal now
            now += seconds
            return result

        return call

    monkeypatch.setattr("accel.cli.run_generate.time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr("accel.cli.run_generate.load", taking(2.0, object()))
    monkeypatch.setattr("accel.pipelines.loading.weights_folder", lambda pipe: tmp_path)
    monkeypatch.setattr("accel.pipelines.loading.weights_hash", taking(5.0, "hashed"))
    for known, expected in ((None, "hashed"), ("known", "known")):
        ready = load_ready(Request("a fox", 0), AccelConfig(), "cpu", known)
        assert (ready.load_seconds, ready.weights) == (2.0, expected)
    assert now == 2 * 2.0 + 5.0
