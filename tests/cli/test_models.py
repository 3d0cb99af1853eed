"""`accel generate -m FOLDER` on tiny pipelines: images, LoRAs, offloading, compiling, and what each family takes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from torch import nn

from accel import load_pipeline
from accel.config import AccelConfig
from tests.cli.conftest import Accel, listing, sha256, side_file

Saved = Callable[[str], Path]
FLUX = ("--prompt", "a fox", "--steps", "4", "--seed", "1", "--height", "44", "--width", "52")
WAN = ("--prompt", "a fox", "--steps", "4", "--seed", "1", "--height", "48", "--width", "64", "--num-frames", "5")
SQUARE = ("--prompt", "a fox", "--steps", "3", "--seed", "1", "--height", "64", "--width", "64", "--num-frames", "5")
# The presets are for more steps.
DELTA = ("--cache", "delta")


def test_an_image(make: Accel, saved: Saved, tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp"):
        result = make("generate", "-m", saved("flux"), *FLUX, *DELTA, "-o", f"a.{suffix}")
        assert f"a.{suffix}: 52x44\n" in result.out
        assert Image.open(tmp_path / f"a.{suffix}").size == (52, 44)
        (tmp_path / "a.json").rename(tmp_path / f"{suffix}.json")
    data = side_file(tmp_path / "png.png")
    assert data["output"]["fps"] is None and data["model"]["pipeline"] == "FluxPipeline"
    assert Path(data["model"]["name"]).is_absolute()
    assert data["summary"]["runs"][0]["methods"]["delta"]["reused"] > 0


@pytest.mark.parametrize(("name", "rate"), [("wan", 16), ("wan22", 16), ("cogvideox", 8), ("hunyuan_video", 24)])
def test_videos(name: str, rate: int, make: Accel, saved: Saved) -> None:
    data = make("generate", "-m", saved(name), *WAN, *DELTA, "-o", "a.gif", "--format", "json").json
    assert (data["output"]["frames"], data["output"]["fps"]) == (5, rate)
    assert data["summary"]["runs"][0]["methods"]["delta"]["reused"] > 0


def test_a_model_that_is_told_the_rate_is_told_what_was_asked(make: Accel, saved: Saved, tmp_path: Path) -> None:
    call = ("generate", "-m", saved("ltx"), *SQUARE, "--preset", "none")
    for name, options, rate in (("a", (), 25), ("b", ("--fps", 12), 12)):
        data = make(*call, *options, "-o", f"{name}.gif", "--format", "json").json
        assert data["output"]["fps"] == data["call"]["frame_rate"] == rate
    assert sha256(tmp_path / "a.gif") != sha256(tmp_path / "b.gif")
    again = make("generate", "--replay", "b.json", "-o", "c.gif", "--format", "json").json
    assert again["replay"]["same_bits"] and again["output"]["fps"] == 12


def test_the_sound_goes_into_the_file_that_can_hold_it(make: Accel, saved: Saved, tmp_path: Path) -> None:
    call = ("generate", "-m", saved("ltx2"), *SQUARE, "--preset", "none")
    assert "without its sound" not in make(*call, "-o", "a.mp4").out
    sound = side_file(tmp_path / "a.mp4")["output"]["sound"]
    assert sound["kept"] and sound["channels"] == 2 and sound["samples_per_second"] == 16000
    (stream,) = (line for line in streams(tmp_path / "a.mp4") if "Audio:" in line)
    assert "aac" in stream and "16000 Hz, stereo" in stream
    assert "without its sound, which only mp4 holds" in make(*call, "-o", "b.gif").out
    assert not side_file(tmp_path / "b.gif")["output"]["sound"]["kept"]


def streams(path: Path) -> list[str]:
    """What ffmpeg says of a file."""
    told = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", path], capture_output=True, text=True)
    return [line for line in told.stderr.splitlines() if "Stream #" in line]


def test_a_negative_prompt_is_read_where_true_guidance_is_the_default(
    make: Accel, saved: Saved, tmp_path: Path
) -> None:
    call = ("generate", "-m", saved("qwenimage"), "--prompt", "a fox", "--steps", 3, "--height", 88, "--width", 104)
    for word in ("fog", "grey"):
        make(*call, "--seed", 1, "--preset", "none", "--negative-prompt", word, "-o", f"{word}.png")
    assert sha256(tmp_path / "fog.png") != sha256(tmp_path / "grey.png")


def test_classes(make: Accel, accel: Accel, saved: Saved) -> None:
    data = make("generate", "-m", saved("dit"), "--prompt", "207", "--steps", 4, "-o", "a.png", "--format", "json").json
    assert data["model"]["pipeline"] == "DiTPipeline"
    assert make("generate", "--replay", "a.json", "-o", "b.png", "--format", "json").json["replay"]["same_bits"]
    refused = accel("generate", "-m", saved("dit"), "--prompt", "a unicorn", "-o", "c.png")
    assert refused.code == 2 and "draws classes" in refused.err


def test_the_config_beside_a_model_is_used(make: Accel, saved: Saved, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.symlink_to(saved("flux"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in folder.iterdir():
        (copy / part.name).symlink_to(part)
    AccelConfig.from_dict({"cache": [{"method": "delta", "interval": 4}]}).save_pretrained(copy)
    result = make("generate", "-m", "copy", *FLUX, "-o", "a.png")
    assert "accel_config.json: cache delta (interval=4" in result.out


def test_stored_weights(make: Accel, saved: Saved, tmp_path: Path) -> None:
    load_pipeline(saved("flux"), quantize="nvfp4-weight").save_pretrained(tmp_path / "stored")
    data = make(
        *("generate", "-m", "stored", *FLUX, "--quantize", "nvfp4-weight", "-o", "a.png", "--format", "json")
    ).json
    report = data["summary"]["runs"][0]["methods"]["nvfp4-weight"]
    assert report["calls"]["plain"] > 0 and report["weight_bytes"] < report["weight_bytes_before"]


def test_lora(make: Accel, accel: Accel, saved: Saved, lora: Path, tmp_path: Path) -> None:
    make("generate", "-m", saved("flux"), *FLUX, *DELTA, "-o", "plain.png")
    make("generate", "-m", saved("flux"), *FLUX, *DELTA, "-o", "file.png", "--lora", lora)
    make("generate", "-m", saved("flux"), *FLUX, *DELTA, "-o", "folder.png", "--lora", lora.parent)
    assert sha256(tmp_path / "plain.png") != sha256(tmp_path / "file.png") == sha256(tmp_path / "folder.png")
    assert make("generate", "--replay", "file.json", "-o", "b.png", "--format", "json").json["replay"]["same_bits"]
    twice = make("generate", "-m", saved("flux"), *FLUX, *DELTA, "-o", "two.png", "--lora", lora, "--lora", lora)
    assert sha256(tmp_path / "two.png") != sha256(tmp_path / "file.png") and twice.err == ""


def test_a_lora_that_does_not_fit(accel: Accel, saved: Saved, lora: Path, tmp_path: Path) -> None:
    (tmp_path / "lora.bin").write_bytes(b"x")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name, model in ((lora, "wan"), ("broken.safetensors", "flux"), ("lora.bin", "flux"), (lora, "dit")):
        result = accel("generate", "-m", saved(model), "--prompt", "7", "-o", "a.png", "--lora", name)
        assert result.code == 2 and len(result.err.splitlines()) == 1, result.err
    for name in ("empty", "gone.safetensors", "nowhere"):
        result = accel("generate", "-m", saved("flux"), *FLUX, "-o", "a.png", "--lora", name)
        assert result.code == 2 and name in result.err, result.err


@pytest.mark.parametrize("kind", ["model", "group"])
def test_offloading_makes_the_same_image(kind: str, make: Accel, saved: Saved, tmp_path: Path) -> None:
    make("generate", "-m", saved("flux"), *FLUX, *DELTA, "-o", "a.png")
    result = make(
        "generate", "-m", saved("flux"), *FLUX, *DELTA, "-o", "b.png", "--cpu-offload", kind, "--device", "cpu"
    )
    a, b = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.png", "b.png"))
    # Moved weights lie elsewhere in memory, where a CPU may add in another order.
    assert abs(a - b).max() <= 1
    assert result.err == (
        f"accel: note: --cpu-offload {kind} saves nothing on a CPU, where the weights are in main memory anyway\n"
    )


def test_tiling_and_dtype(make: Accel, saved: Saved) -> None:
    data = make(
        *("generate", "-m", saved("flux"), *FLUX, "-o", "b.png", "--vae-tiling", "--dtype", "bfloat16"),
        *("--format", "json"),
    ).json
    assert data["summary"]["dtype"] == "bfloat16" and data["options"]["vae_tiling"]


def test_an_image_to_start_from(make: Accel, accel: Accel, saved: Saved, tmp_path: Path) -> None:
    Image.effect_noise((52, 44), 60).save(tmp_path / "start.png")
    call = ("generate", "-m", saved("flux_img2img"), *FLUX)
    make(*call, "-o", "a.png", "--image", "start.png")
    Image.new("RGB", (52, 44), "red").save(tmp_path / "red.png")
    make(*call, "-o", "b.png", "--image", "red.png", "--compare-dense")
    assert sha256(tmp_path / "a.png") != sha256(tmp_path / "b.png")

    assert make("generate", "--replay", "a.json", "-o", "c.png", "--format", "json").json["replay"]["same_bits"]
    Image.new("RGB", (52, 44), "blue").save(tmp_path / "start.png")
    before = listing(tmp_path)
    changed = accel("generate", "--replay", "a.json", "-o", "d.png")
    assert changed.code == 2 and "start.png has changed" in changed.err

    missing = accel(*call, "-o", "d.png")
    assert missing.code == 2 and "without --image" in missing.err
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("flux", ["--num-frames", "5"], "FluxPipeline takes no --num-frames"),
        ("flux", ["--fps", "8"], "no --fps"),
        ("flux", ["--negative-prompt", "fog"], "reads no --negative-prompt"),
        ("flux", ["--height", "45"], "height=45 is not a multiple of 2; the nearest that works is 46"),
        ("flux", ["--image", "start.png"], "FluxPipeline takes no --image"),
        ("flux", ["-o", "a.mp4"], "a.mp4 cannot hold an image"),
        ("flux", ["--size", "quick"], "--size belongs to the demo"),
        ("dit", ["--height", "48"], "DiTPipeline takes no --height"),
        ("wan", ["-o", "a.jpg"], "a.jpg cannot hold a video"),
        ("wan", ["--num-frames", "6"], "the nearest that works is"),
        ("wan", ["--negative-prompt", "fog", "--guidance-scale", "1"], "does nothing at --guidance-scale 1"),
        ("stable_diffusion", [], "is of no family that Accel knows"),
    ],
)
def test_what_a_pipeline_does_not_take(
    model: str, options: list[str], says: str, accel: Accel, saved: Saved, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "start.png")
    result = accel("generate", "-m", saved(model), "--prompt", "7", "-o", "a.png", *options)
    assert result.code == 2, result.err
    assert says in result.err and len(result.err.splitlines()) == 1
    assert set(listing(tmp_path)) == {"start.png"}


def test_an_unknown_family_runs_plainly(make: Accel, saved: Saved) -> None:
    call = (
        "generate",
        "-m",
        saved("stable_diffusion"),
        "--prompt",
        "a fox",
        "--steps",
        3,
        "--height",
        48,
        "--width",
        48,
    )
    assert make(*call, "--preset", "none", "-o", "a.png", "--format", "json").json["summary"] is None


@pytest.mark.parametrize(("name", "blocks"), [("wan22", 8), ("cogvideox", 4)])
def test_compile_takes_every_block(
    name: str, blocks: int, make: Accel, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    make("generate", "-m", saved(name), *WAN, "-o", "a.png", "--compile")
    assert len(compiled) == blocks and set(compiled) <= {"WanTransformerBlock", "CogVideoXBlock"}


@pytest.mark.slow
def test_compiled_blocks(make: Accel, saved: Saved) -> None:
    call = ("generate", "-m", saved("wan"), *WAN, *DELTA, "--format", "json")
    plain = make(*call, "-o", "a.png").json
    data = make(*call, "-o", "b.png", "--compile").json
    reused = [d["summary"]["runs"][0]["methods"]["delta"]["reused"] for d in (plain, data)]
    assert reused[0] == reused[1] > 0 and data["options"]["compile"]
    # Other kernels ran.
    assert plain["output"]["frames_sha256"] != data["output"]["frames_sha256"]
