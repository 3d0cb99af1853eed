"""`accel generate` on the built-in model: what is written, what is said, and that it is what Python gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

import accel as library
from accel.reporting.side_file import frames_sha256
from tests.cli.conftest import DEMO, Accel, listing, sha256, side_file

PROMPT = DEMO[2]


def test_a_video_with_its_side_file(make: Accel, tmp_path: Path) -> None:
    result = make(*DEMO, "--steps", 10, "-o", "circle.mp4")
    assert set(listing(tmp_path)) == {"circle.mp4", "circle.json"}
    reader = imageio_ffmpeg.read_frames(tmp_path / "circle.mp4")
    meta = next(reader)
    assert meta["size"] == (128, 128) and meta["fps"] == 8 and sum(1 for _ in reader) == 9

    data = side_file(tmp_path / "circle.mp4")
    assert data["schema"] == 1
    assert data["prompt"] == PROMPT and data["seed"] == 7
    assert data["model"] == {"name": "demo", "size": "quick", "pipeline": "WanPipeline", "dtype": "float32"}
    assert re.fullmatch("[0-9a-f]{16}", data["weights_hash"])
    assert data["call"] == {
        "height": 128,
        "width": 128,
        "num_frames": 9,
        "num_inference_steps": 10,
        "guidance_scale": 4.0,
        "num_videos_per_prompt": 1,
        "max_sequence_length": 24,
    }
    assert data["acceleration"]["cache"][0]["method"] == "tdc"
    assert data["summary"]["runs"][0]["methods"]["tdc"]["reused"] > 0
    assert set(data["versions"]) == {"accel", "python", "torch", "diffusers", "transformers", "triton"}
    assert 0 < data["seconds"]["loop"] < data["seconds"]["call"]

    # The configuration is said before the run, what ran after it, and stderr holds nothing else.
    lines = result.out.splitlines()
    assert "seed 7" in lines[0] and lines[1].startswith("balanced: cache tdc (threshold=0.2")
    assert "tdc: reused" in result.out and "circle.mp4: 9 frames of 128x128 at 8 fps" in lines
    assert result.err == ""


@pytest.mark.parametrize("methods", [{}, {"cache": "delta"}])
def test_the_frames_are_those_of_python(methods: dict, make: Accel, tmp_path: Path) -> None:
    options = ["--cache", "delta"] if methods else ["--preset", "none"]
    make(*DEMO, *options, "-o", "a.gif")
    pipe = library.load_pipeline("demo", size="quick")
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(7), "output_type": "np"}
    if methods:
        with library.enable(pipe, **methods):
            frames = pipe(PROMPT, **arguments).frames[0]
    else:
        frames = pipe(PROMPT, **arguments).frames[0]
    assert sha256(tmp_path / "a.gif") == frames_sha256(frames)
    assert (side_file(tmp_path / "a.gif")["summary"] is not None) == bool(methods)


def test_json_is_one_object_on_stdout(make: Accel, tmp_path: Path) -> None:
    result = make(*DEMO, "-o", "a.png", "--format", "json")
    data = result.json
    assert data["paths"]["output"] == str(tmp_path / "a.png")
    side = json.loads(Path(data["paths"]["side_file"]).read_text())
    assert {name: value for name, value in data.items() if name in side} | {"schema": 1, "kind": side["kind"]} == side
    assert "balanced: cache tdc" in result.err


def test_a_video_as_png_is_a_sheet_and_says_so(make: Accel, tmp_path: Path) -> None:
    result = make(*DEMO, "-o", "a.png")
    assert "a.png: 9 frames of 128x128 at 8 fps, as one sheet" in result.out
    assert Image.open(tmp_path / "a.png").width > 3 * 128


def test_a_gif_keeps_its_length(make: Accel, tmp_path: Path) -> None:
    make(*DEMO, "-o", "a.gif", "--fps", 12)
    image = Image.open(tmp_path / "a.gif")
    durations = []
    for index in range(image.n_frames):
        image.seek(index)
        durations.append(image.info["duration"])
    assert sum(durations) == round(9 / 12 * 100) * 10


def test_folders_get_numbered_files(make: Accel, tmp_path: Path) -> None:
    # A folder that is there and one that is not, which needs the slash.
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "0041.png").touch()
    make(*DEMO, "-o", "there")
    make(*DEMO, "-o", "new/er/")
    assert set(listing(tmp_path / "there")) == {"0041.png", "0042.mp4", "0042.json"}
    assert set(listing(tmp_path / "new" / "er")) == {"0001.mp4", "0001.json"}


def test_without_output_the_file_is_named_by_date(make: Accel, tmp_path: Path) -> None:
    make(*DEMO)
    names = sorted(listing(tmp_path / "outputs"))
    assert [bool(re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_demo\.(json|mp4)", n)) for n in names] == [True, True]


def test_overwrite_replaces_both(make: Accel, tmp_path: Path) -> None:
    for name in ("a.gif", "a.json"):
        (tmp_path / name).write_text("old")
    make(*DEMO, "-o", "a.gif", "--overwrite")
    assert set(listing(tmp_path)) == {"a.gif", "a.json"}
    assert side_file(tmp_path / "a.gif")["seed"] == 7


def test_a_seed_is_drawn_and_reported(make: Accel) -> None:
    arguments = [value for value in DEMO if value not in ("--seed", "7")]
    drawn = [make(*arguments, "-o", f"{i}.gif", "--format", "json").json["seed"] for i in range(2)]
    assert drawn[0] != drawn[1]


def test_options_reach_the_call_and_the_methods(make: Accel) -> None:
    data = make(
        *(*DEMO, "-o", "a.gif", "--format", "json", "--cache", "delta"),
        *("--height", 64, "--width", 96, "--num_frames", 5, "--guidance-scale", 1, "--num-inference-steps", 4),
        *("--set", "cache.interval=4", "--set", "dense_steps=1e-1", "--set", "delta.boundary=0.5"),
    ).json
    assert data["output"]["frames"] == 5 and data["output"]["height"] == 64 and data["output"]["width"] == 96
    assert data["call"]["num_inference_steps"] == 4 and data["call"]["guidance_scale"] == 1
    method = data["acceleration"]["cache"][0]
    assert (method["interval"], method["dense_steps"], method["boundary"]) == (4, 0.1, 0.5)


def test_a_config_file(make: Accel, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("cache: [{method: delta, interval: 3, cached_blocks: 0.5}]\n")
    result = make(*DEMO, "-o", "a.gif", "--config", "mine.yaml")
    assert "mine.yaml: cache delta (interval=3, cached_blocks=0.5" in result.out


@pytest.mark.parametrize(
    "options",
    [["--preset", "none"], ["--cache", "none"], ["--preset", "fast", "--cache", "none", "--attention", "dense"]],
)
def test_plain_runs(options: list[str], make: Accel) -> None:
    data = make(*DEMO, "-o", "a.gif", "--format", "json", *options).json
    assert data["acceleration"]["cache"] == [] and data["summary"] is None


def test_unknown_words_are_a_note(make: Accel) -> None:
    result = make(*DEMO, "--preset", "none", "--prompt", "a gunmetal circle", "-o", "a.gif")
    assert result.err.startswith('accel: note: the demo does not know "gunmetal"; it knows colours: red')
    assert len(result.err.splitlines()) == 1


def test_a_method_that_did_nothing_is_a_note(make: Accel) -> None:
    result = make(*DEMO, "-o", "a.gif", "--set", "dense_steps=1")
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("accel: note: tdc was on and did nothing")


def test_compare_dense(make: Accel, tmp_path: Path) -> None:
    result = make(*DEMO, "--cache", "delta", "-o", "a.gif", "--compare-dense")
    assert set(listing(tmp_path)) == {"a.gif", "a.json", "a.compare.png"}
    data = side_file(tmp_path / "a.gif")
    comparison = data["comparison"]
    seconds = [comparison[name]["seconds"] for name in ("plain", "accelerated")]
    assert comparison["speedup"] == pytest.approx(seconds[0] / seconds[1])
    assert data["seconds"]["call"] == seconds[1]
    assert 10 < comparison["psnr_db"] < 80 and 0.3 < comparison["ssim"] < 1 and not comparison["same_bits"]
    assert set(comparison["plain"]["prompt_accuracy"]) == {"color", "shape", "motion"}
    # One run, and not the one that warmed up.
    assert [run["steps"] for run in data["summary"]["runs"]] == [3]
    assert f"speed-up {comparison['speedup']:.2f}× (1 pair: spread unknown), in the loop " in result.out
    assert "one run each" in result.out and "a.compare.png" in result.out
    assert result.err == ""
    sheet = np.asarray(Image.open(tmp_path / "a.compare.png").convert("RGB"))
    assert sheet.shape[0] > 2 * 128 and sheet.shape[1] > 8 * 128


def test_comparing_with_what_changes_nothing(make: Accel) -> None:
    with_interval_one = (*DEMO, "--cache", "delta", "--set", "interval=1", "-o", "a.gif", "--compare-dense")
    comparison = make(*with_interval_one, "--format", "json").json["comparison"]
    assert comparison["same_bits"] and comparison["psnr_db"] is None and comparison["ssim"] == 1
