"""`accel calibrate`: the file, the command that uses it, and bad inputs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Accel, listing, side_file

PROMPT = "a red circle moving left"
MIXED = ("calibrate", "mixed", "--size", "quick", "--steps", "3")
FLASHBLOCK = ("calibrate", "flashblock", "--size", "quick", "--steps", "4", "--prompt", PROMPT)


def next_command(out: str) -> list[str]:
    """The arguments of the command that was printed last."""
    words = shlex.split(out.splitlines()[-1])
    assert words[0] == "accel"
    return words[1:]


def test_mixed_by_a_file_of_prompts_and_what_to_do_next(make: Accel, accel: Accel, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\n  a blue ring growing on a white background \n")
    # A name that YAML, in which settings are read, takes for something else.
    result = make(*MIXED, "--prompts", "prompts.txt", "--set", "quantize.rotate=false", "-o", "no: 1.json")
    assert "run 1 of 2: 3 steps, seed 0, 'a red circle moving left'" in result.out
    assert "run 2 of 2: 3 steps, seed 1, 'a blue ring growing on a white background'" in result.out
    assert "no: 1.json: the errors of " in result.out and "of 80 layers follow" in result.out
    assert len(json.loads((tmp_path / "no: 1.json").read_text())["lines"]) == 80
    make(*next_command(result.out), "-o", "a.gif")
    methods = side_file(tmp_path / "a.gif")["summary"]["runs"][0]["methods"]
    assert methods["mixed"]["calibrated"] and min(methods["mixed"]["chosen"][form] for form in ("int8", "nvfp4")) > 0
    # Not for other settings.
    rotated = [word for word in next_command(result.out) if "rotate" not in word]
    del rotated[rotated.index("--set")]
    refused = accel(*rotated, "-o", "b.gif")
    assert refused.code == 2 and "made for rotate=False: calibrate again" in refused.err


def test_nvfp4_and_what_to_do_next(make: Accel, tmp_path: Path) -> None:
    result = make("calibrate", "nvfp4", "--size", "quick", "--steps", "1", "--prompt", PROMPT, "-o", "n.json")
    assert "n.json: NVFP4 activations of 80 layers are scaled by powers of two from " in result.out
    assert len(json.loads((tmp_path / "n.json").read_text())["scales"]) == 80
    make(*next_command(result.out), "-o", "a.gif")
    figures = side_file(tmp_path / "a.gif")["summary"]["runs"][0]["methods"]["nvfp4"]
    assert figures["activation_scales"].endswith(" as calibrated") and figures["calls"]["nvfp4"] > 0


def test_flashblock_and_what_to_do_next(make: Accel, tmp_path: Path) -> None:
    result = make(*FLASHBLOCK, "--set", "density=0.5", "--set", "dense_steps=0", "--format", "json", "-o", "f.json")
    data = result.json
    assert data["output"] == str(tmp_path / "f.json") and data["steps"] == 4
    assert data["summary"].endswith("of the heads are to be computed anew where something is kept, in runs of 4 steps")
    assert [run["seed"] for run in data["runs"]] == [0] and data["runs"][0]["seconds"] > 0
    assert "run 1 of 1: 4 steps" in result.err
    make(*next_command(data["next"]), "-o", "a.gif")
    assert "flashblock" in side_file(tmp_path / "a.gif")["summary"]["runs"][0]["methods"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["calibrate"], "missing argument 'method'"),
        (["calibrate", "tdc"], "'tdc' is not one of 'flashblock', 'mixed', 'nvfp4'"),
        ([*MIXED, "-o", "a.json"], "there is no prompt: give some with --prompt, or a file"),
        ([*MIXED, "-o", "a.json", "--prompt", ""], "the prompt is empty"),
        ([*MIXED, "-o", "a.json", "--prompts", "gone.txt"], "cannot read the prompts gone.txt: no such file"),
        ([*MIXED, "-o", "a.json", "--prompts", "empty.txt"], "empty.txt has no prompts"),
        ([*MIXED, "-o", "a.json", "--prompts", "odd.txt"], "is not a text file in UTF-8"),
        ([*MIXED, "-o", "a.json", "--prompts", "empty.txt", "--prompt", "x"], "give one of the two"),
        ([*MIXED, "--prompt", "x"], "no --output: name the file that --set quantize.calibration will take"),
        ([*FLASHBLOCK], "no --output: name the file that --set cache.calibration will take"),
        ([*FLASHBLOCK, "-o", "a.txt"], "a.txt is not the name of a .json file"),
        ([*FLASHBLOCK, "-o", "."], "is not the name of a .json file"),
        ([*FLASHBLOCK, "-o", "taken.json"], "taken.json exists; choose another name, or add --overwrite"),
        ([*FLASHBLOCK, "-o", "gone/a.json"], "there is no folder gone for a.json"),
        ([*FLASHBLOCK, "-o", "a.json", "--steps", "0"], "--steps 0 is not possible"),
        ([*FLASHBLOCK, "-o", "a.json", "--height", "127"], "the nearest that works is 128"),
        ([*FLASHBLOCK, "-o", "a.json", "--attention", "pisa"], "set tail='none'"),
        ([*FLASHBLOCK, "-o", "a.json", "--set", "rotate=false"], "rotate"),
        ([*MIXED, "--prompt", "x", "-o", "a.json", "-m", "gone/"], "--size belongs to the demo"),
        (
            [*MIXED, "--prompt", PROMPT, "-o", "a.json", "--set", "threshold=0.1"],
            "without another, and without threshold",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused(arguments: list[str], says: str, accel: Accel, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "taken.json").write_text("mine")
    before = listing(tmp_path)
    result = accel(*arguments)
    assert result.code == 2, result.err
    (line,) = (line for line in result.err.splitlines() if not line.startswith("accel: note: "))
    assert line.startswith("accel: error: ") and says.lower() in line.lower(), line
    assert listing(tmp_path) == before


def test_runs_too_short_or_broken_leave_nothing(accel: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = listing(tmp_path)
    short = accel(*MIXED, "--steps", "1", "--prompt", PROMPT, "-o", "a.json")
    assert short.code == 2 and "measured nothing: use two steps or more" in short.err

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the fan\nfell off")

    monkeypatch.setattr("diffusers.WanTransformer3DModel.forward", broken)
    result = accel(*FLASHBLOCK, "-o", "a.json")
    assert result.code == 1 and "accel: error: WanPipeline failed: RuntimeError: the fan fell off" in result.err
    assert listing(tmp_path) == before
