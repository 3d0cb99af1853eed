"""Frames into files and back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from accel.reporting.contact_sheet import comparison_sheet, film_sheet
from accel.reporting.sound import Sound
from accel.reporting.video import encode, to_bytes


def film(frames: int = 6, height: int = 32, width: int = 48) -> np.ndarray:
    """A bright square that moves over two tones."""
    pixels = np.zeros((frames, height, width, 3), np.float32)
    pixels[..., 2] = 0.4
    for index in range(frames):
        pixels[index, 8:16, 2 * index : 2 * index + 8] = (0.9, 0.2, 0.1)
    return pixels


def written(frames: np.ndarray, path: Path, fps: float = 8) -> str:
    writer, remark = encode(frames, path.suffix, fps)
    writer(path)
    return remark


def decoded(path: Path) -> tuple[np.ndarray, dict]:
    reader = imageio_ffmpeg.read_frames(path)
    meta = next(reader)
    width, height = meta["size"]
    return np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader]), meta


def test_mp4(tmp_path: Path) -> None:
    frames = film()
    assert written(frames, tmp_path / "a.mp4", 12.5) == ""
    back, meta = decoded(tmp_path / "a.mp4")
    assert meta["fps"] == 12.5 and meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p")
    assert back.shape == (6, 32, 48, 3)
    # The colours come back too, not only the outlines: the matrix that is named is the one that was used.
    assert abs(back.astype(int) - to_bytes(frames)).mean() < 4


def test_odd_sides_are_padded(tmp_path: Path) -> None:
    frames = film(height=31, width=47)
    assert written(frames, tmp_path / "a.mp4") == "padded to 48x32, since mp4 needs even sides"
    back, _ = decoded(tmp_path / "a.mp4")
    assert back.shape == (6, 32, 48, 3)
    assert abs(back[:, :31, :47].astype(int) - to_bytes(frames)).mean() < 4


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_equal_frames_give_equal_bytes(suffix: str, tmp_path: Path) -> None:
    for name in "ab":
        written(film(), tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_the_sound_of_an_mp4_comes_back(tmp_path: Path) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24000) / 24000, dtype=np.float32)
    sound = Sound(np.stack([tone, np.zeros_like(tone)]), 24000)
    for name in ("a.mp4", "b.mp4"):
        writer, remark = encode(film(frames=8), ".mp4", 8, sound)
        assert remark == ""
        writer(tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert len(decoded(tmp_path / "a.mp4")[0]) == 8
    program = imageio_ffmpeg.get_ffmpeg_exe()
    decode = [program, "-loglevel", "error", "-i", tmp_path / "a.mp4", "-vn", "-f", "f32le", "-"]
    back = np.frombuffer(subprocess.run(decode, capture_output=True, check=True).stdout, "<f4").reshape(-1, 2)
    assert 24000 <= len(back) < 25200
    spectrum = np.abs(np.fft.rfft(back[:24000, 0]))
    assert spectrum.argmax() == 440 and abs(back[2000:20000, 0]).max() == pytest.approx(0.5, abs=0.02)
    assert abs(back[:, 1]).max() < 0.01


def test_gif(tmp_path: Path) -> None:
    assert written(film(), tmp_path / "a.gif", 16) == ""
    image = Image.open(tmp_path / "a.gif")
    assert image.n_frames == 6 and image.info["loop"] == 0
    durations = []
    for index in range(6):
        image.seek(index)
        durations.append(image.info["duration"])
        assert abs(np.asarray(image.convert("RGB")).astype(int) - to_bytes(film())[index]).max() <= 2
    assert sum(durations) == 380 and max(durations) == 70
    assert "50 fps" in written(film(), tmp_path / "b.gif", 60)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp"])
def test_one_frame_is_a_picture(suffix: str, tmp_path: Path) -> None:
    frames = film(frames=1)
    assert written(frames, tmp_path / f"a{suffix}") == ""
    back = np.asarray(Image.open(tmp_path / f"a{suffix}").convert("RGB")).astype(int)
    assert back.shape == (32, 48, 3)
    assert abs(back - to_bytes(frames)[0]).mean() <= (0 if suffix == ".png" else 4)


def test_a_film_as_png_is_a_sheet(tmp_path: Path) -> None:
    assert written(film(frames=6), tmp_path / "a.png") == "as one sheet"
    assert written(film(frames=20), tmp_path / "b.png") == "as a sheet of 16 of them"


def test_what_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match=r"cannot be a \.jpg file"):
        encode(film(), ".jpg", 8)
    with pytest.raises(ValueError, match="no encoder"):
        encode(film(), ".avi", 8)


def test_bytes_round_to_the_nearest() -> None:
    values = np.array([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.1], np.float32)
    assert to_bytes(values).tolist() == [0, 0, 0, 1, 255, 255]


def test_sheets_show_the_first_and_the_last_frame() -> None:
    pixels = np.zeros((33, 16, 16, 3), np.uint8)
    pixels[0] = (255, 0, 0)
    pixels[-1] = (0, 255, 0)
    sheet, shown = film_sheet(pixels)
    both = comparison_sheet([("plain", pixels), ("accelerated", pixels)])
    assert shown == 16
    for picture, times in ((sheet, 1), (both, 2)):
        flat = np.asarray(picture).reshape(-1, 3)
        for colour in ((255, 0, 0), (0, 255, 0)):
            assert (flat == colour).all(1).sum() == times * 256


def test_large_frames_are_made_smaller_on_a_sheet() -> None:
    sheet, _ = film_sheet(np.zeros((4, 512, 1024, 3), np.uint8))
    assert sheet.width < 2 * 270 and sheet.height < 2 * 160
