"""Bad inputs: one line on stderr, the right exit code, nothing left behind."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import DEMO, Accel, listing
from tests.repository.tree import ROOT

GENERATE = ("generate", "--prompt", "a red circle", "--size", "quick", "--steps", "2", "-o", "a.mp4")

# What is asked for beside GENERATE (an option given twice counts the second time) -> what the line says.
REFUSED: list[tuple[list[str], str]] = [
    (["--prompt", ""], "the prompt is empty"),
    (["--prompt", " \t "], "the prompt is empty"),
    (["--prompt", "a red \udcff circle"], "--prompt is not text in UTF-8: write its character 7 anew"),
    (["--negative-prompt", "\udcff"], "--negative-prompt is not text in UTF-8"),
    (["--steps", "many"], "'many' is not a whole number"),
    (["--steps", "-3"], "--steps -3 is not possible; the nearest that works is 1"),
    (["--steps", "0"], "--steps 0 is not possible"),
    (["--guidance-scale", "strong"], "'strong' is not a number"),
    (["--guidance-scale", "nan"], "nan is not a finite number"),
    (["--height", "127"], "the nearest that works is 128"),
    (["--width", "-16"], "--width -16 is not possible"),
    (["--num-frames", "4"], "the nearest that works is 5"),
    (["--num-frames", "9.5"], "'9.5' is not a whole number"),
    (["--seed", "99999999999999999999"], "the nearest that works is 9223372036854775807"),
    (["--seed", "lucky"], "'lucky' is not a whole number"),
    (["--fps", "0"], "'--fps': 0 is not possible; the nearest that works is 1"),
    (["--size", "quik"], 'did you mean "quick"?'),
    (["--dtype", "float7"], "'float7' is not one of 'float32', 'bfloat16', 'float16'"),
    (["--device", "cuda:99"], "this machine has no device 'cuda:99' that torch can use"),
    (["--device", "toaster"], "this machine has no device 'toaster'"),
    (["--cpu-offload", "disk"], "'disk' is not one of 'model', 'group'"),
    (["--cpu-offload", "group", "--quantize", "int8"], "int8: --cpu-offload group takes hold of the weights before"),
    (["--preset", "fastest"], "no preset 'fastest': there are quality, balanced, fast"),
    (["--preset", "fast", "--config", "good.yaml"], "--preset and --config"),
    (["--preset", "none", "--cache", "delta"], "--preset none is the plain pipeline"),
    (["--preset", "none", "--compare-dense"], "nothing to compare"),
    (["--cache", "detla"], "cache has no method 'detla': it takes 'delta', 'flashblock', 'tdc' (nearest: 'delta')"),
    (["--cache", "delta", "--cache", "delta"], "cache names delta twice"),
    (["--cache", "none", "--cache", "delta"], "--cache none stands alone"),
    (["--attention", "delta"], "attention has no method 'delta'"),
    (["--quantize", "int3"], "quantize has no method 'int3'"),
    (["--set", "interval"], "--set interval is not of the form cache.interval=3"),
    (["--set", "=3"], "is not of the form"),
    (["--set", "threshold=-1"], "threshold=-1 is not possible"),
    (["--set", "interval=[1"], "neither JSON nor YAML"),
    (["--set", "interval=2026-13-01"], "neither JSON nor YAML"),
    (["--set", "treshold=3"], "nearest: 'threshold'"),
    (["--set", "attention.density=0.5"], "names no single active method"),
    (["--config", "gone.yaml"], "cannot read the configuration gone.yaml"),
    (["--config", "broken.yaml"], "is neither JSON nor YAML"),
    (["--config", "odd.yaml"], "unknown setting 'cash'"),
    (["--image", "gone.png"], "cannot read the image gone.png"),
    (["--image", "good.yaml"], "is not an image that can be read"),
    (["--image", "good.png"], "takes no --image"),
    (["--lora", "gone.safetensors"], "there is no LoRA gone.safetensors"),
    (["--negative-prompt", "fog", "--guidance-scale", "1"], "--negative-prompt does nothing"),
    (["-m", "gone/"], "--size belongs to the demo"),
    (["-o", "a.avi"], "a.avi is of a kind that accel does not write: use .mp4"),
    (["-o", "a.jpg"], "a.jpg cannot hold a video: use .mp4, .gif or .png"),
    (["-o", "a"], "a has no suffix"),
    (["-o", ""], "--output is empty"),
    (["-o", "taken.gif"], "taken.gif exists; choose another name, or add --overwrite"),
    # The side file of another result would be lost.
    (["-o", "taken.mp4"], "taken.json exists"),
    (["-o", "gone/a.mp4"], "there is no folder gone for a.mp4"),
    (["-o", "good.yaml/a.mp4"], "cannot write into good.yaml: good.yaml is not a folder"),
    (["-o", "good.yaml/"], "good.yaml is not a folder"),
    (["-o", "/proc/a.mp4"], "cannot write into /proc"),
    (["--replay", "good.json"], "leave --prompt out"),
    (["--format", "xml"], "'xml' is not one of 'human', 'json'"),
    (["--heigth", "64"], "no such option: --heigth"),
    (["stray"], "unexpected extra argument(s) (stray); accel generate --help lists what there is"),
]

REFUSED_ALONE: list[tuple[list[str], str]] = [
    (["generate"], "there is no prompt"),
    (["generate", "--prompt"], "requires an argument"),
    (["generate", "--replay", "gone.json"], "cannot read gone.json: no such file"),
    (["generate", "--replay", "broken.yaml"], "broken.yaml is not valid JSON"),
    (["generate", "--replay", "good.json"], "good.json does not describe a result"),
    (["generate", "--replay", "good.png"], "good.png is not valid JSON"),
    (["generate", "--prompt", "x", "-m", "gone/"], "there is no folder"),
    (["generate", "--prompt", "x", "-m", "demmo"], 'did you mean "demo"?'),
    (["generate", "--prompt", "x", "-m", "good.yaml"], "is a single file, not a"),
    (["generate", "--prompt", "x", "-m", "empty"], "is not a whole pipeline"),
    (["generat"], "did you mean 'generate'?"),
    (["gen"], "no such command 'gen'; did you mean 'generate'?"),
    (["perfile"], "did you mean 'profile'?"),
    (["make"], "no such command 'make'; there are generate, bench, "),
    (["bench", "--seeds", "0"], "'--seeds': 0 is not possible; the nearest that works is 1"),
    (["bench", "--repeats", "-1"], "'--repeats': -1 is not possible; the nearest that works is 1"),
    (["bench", "--least-psnr", "nan"], "'--least-psnr': nan is not possible"),
    (["bench", "-s", "blanced"], "setting 'blanced': no preset 'blanced'"),
    (["bench", "-s", "quantize=nvfp4", "--cpu-offload", "group"], "nvfp4: --cpu-offload group takes hold"),
    (["compare", "good.yaml"], "good.yaml holds no bench.json"),
    (["compare", "-o", "gone/a.png"], "there is no folder gone for a.png; make it first"),
    (["report", "empty", "-o", "gone/a.html"], "there is no folder gone for a.html; make it first"),
    (["calibrate", "mix"], "'METHOD': 'mix' is not one of 'flashblock', 'mixed'"),
    (
        ["calibrate", "mixed", "--prompt", "x", "--cpu-offload", "group", "-o", "x.json"],
        "use --cpu-offload model, or a model that was",
    ),
    (
        ["generate", "--prompt", "x", "--config", "none.yaml"],
        "a mapping with attention, cache, quantize, not nothing",
    ),
    (["list", "--preset", "fastest"], "no preset 'fastest'"),
    (["list", "-m", "gone"], "'gone' is neither a folder nor a hub id"),
    (["--frobnicate"], "no such option: --frobnicate"),
]


@pytest.fixture
def around(tmp_path: Path) -> Path:
    """A folder with good and bad files for the options."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "good.yaml").write_text("cache: [delta]\n")
    (tmp_path / "none.yaml").write_text("")
    (tmp_path / "good.json").write_text("{}")
    (tmp_path / "broken.yaml").write_text("cache: [delta\n")
    (tmp_path / "odd.yaml").write_text("cash: [delta]\n")
    (tmp_path / "taken.gif").write_text("mine")
    (tmp_path / "taken.json").write_text("mine")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    return tmp_path


def refused(accel: Accel, folder: Path, arguments: list[str], says: str, code: int = 2) -> None:
    """Runs a command that must fail with one line and leave the folder as it was."""
    before = listing(folder)
    result = accel(*arguments)
    assert result.code == code, (result.code, result.err)
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("accel: error: "), result.err
    assert says.lower() in lines[0].lower(), lines[0]
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("options", "says"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_refused(options: list[str], says: str, accel: Accel, around: Path) -> None:
    refused(accel, around, [*GENERATE, *options], says)


@pytest.mark.parametrize(("arguments", "says"), REFUSED_ALONE, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_refused_alone(arguments: list[str], says: str, accel: Accel, around: Path) -> None:
    refused(accel, around, arguments, says)


def test_a_refusal_prints_nothing_on_stdout(accel: Accel, around: Path) -> None:
    assert accel(*GENERATE, "--height", "127", "--format", "json").out == ""


def test_a_pickle_is_not_loaded(accel: Accel, saved: Callable[[str], Path], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    model = tmp_path / "model"
    shutil.copytree(saved("flux"), model)
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.with_suffix(".bin").write_bytes(pickle.dumps(Trap()))
    weights.unlink()
    refused(accel, tmp_path, ["generate", "-m", "model", "--prompt", "x", "-o", "a.png"], "is a pickle")


@pytest.mark.parametrize("target", ["write_text", "fsync", "replace"])
@pytest.mark.parametrize("output", ["a.mp4", "new/folder/"])
def test_a_full_disk_leaves_nothing(
    target: str, output: str, accel: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.mp4").write_text("old")
    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr(Path if target == "write_text" else os, target, full)
    refused(
        *(accel, tmp_path, [*DEMO, "--steps", "1", "--preset", "none", "--overwrite", "-o", output]),
        *("no space left on device", 1),
    )
    assert (tmp_path / "a.mp4").read_text() == (tmp_path / "a.json").read_text() == "old"


def test_an_encoder_that_fails_leaves_nothing(accel: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accel.reporting.video._CRF", "soft")
    refused(
        accel,
        tmp_path,
        [*DEMO, "--steps", "1", "--preset", "none", "-o", "a.mp4"],
        "cannot write a.mp4: ffmpeg failed",
        1,
    )


def test_a_failing_run_is_one_line(accel: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the fan\nfell off")

    monkeypatch.setattr("diffusers.FlowMatchEulerDiscreteScheduler.step", broken)
    refused(accel, tmp_path, [*DEMO, "-o", "a.mp4"], "WanPipeline failed: RuntimeError: the fan fell off", 1)


def test_numbers_that_are_none_are_a_failed_run(accel: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.video_processor import VideoProcessor

    original = VideoProcessor.postprocess_video
    monkeypatch.setattr(VideoProcessor, "postprocess_video", lambda *a, **k: original(*a, **k) * float("nan"))
    refused(accel, tmp_path, [*DEMO, "--preset", "none", "-o", "a.mp4"], "values that are not numbers", 1)


@pytest.mark.parametrize(
    "where", ["diffusers.FlowMatchEulerDiscreteScheduler.step", "accel.reporting.files._sync", "subprocess.run"]
)
def test_an_interruption_leaves_nothing(
    where: str, accel: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    before = listing(tmp_path)
    monkeypatch.setattr(where, interrupted)
    result = accel(*DEMO, "--cache", "delta", "-o", "new/")
    assert (result.code, result.err) == (130, "accel: interrupted\n")
    assert listing(tmp_path) == before


def test_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accel", *DEMO, "--steps", "5000", "-o", str(tmp_path / "a.mp4")]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell ignores interruptions, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        # The configuration is said right before the first step.
        while not process.stdout.readline().startswith("balanced"):
            assert process.poll() is None, process.communicate()[1]
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "accel: interrupted\n")
    assert not listing(tmp_path)


def test_the_traceback_is_there_on_request(
    accel: Accel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("accel.reporting.video._CRF", "soft")
    monkeypatch.setenv("ACCEL_DEBUG", "1")
    result = accel(*DEMO, "--steps", "1", "--preset", "none", "-o", "a.mp4")
    assert "Traceback" in result.err and result.err.splitlines()[-1].startswith("accel: error: cannot write a.mp4")
