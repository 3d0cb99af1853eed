"""Frames into files: mp4, gif, png, jpg and webp.

Frames are numpy arrays (T, H, W, 3), float32 in 0..1. Equal frames give equal bytes with the same versions of the
encoders: one thread, no dates, no random identifiers.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from accel.reporting.contact_sheet import film_sheet
from accel.reporting.files import Writer
from accel.reporting.formats import IMAGE_SUFFIXES
from accel.reporting.sound import Sound

# Quality settings of the lossy formats, chosen by us: no visible loss on flat colours and thin edges.
_CRF = 12
_QUALITY = 95
# A gif counts in hundredths of a second, and browsers slow down what is shorter than two of them.
_GIF_FASTEST = 50


def to_bytes(frames: np.ndarray) -> np.ndarray:
    """The same frames as uint8, rounded to the nearest of 256 levels; those that are so already are given back."""
    if frames.dtype == np.uint8:
        return frames
    return (np.clip(frames, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def encode(frames: np.ndarray, suffix: str, fps: float, sound: Sound | None = None) -> tuple[Writer, str]:
    """A writer for `write_together`, and what a user should know about the file ("" for nothing).

    Args:
        frames: (T, H, W, 3), float32 in 0..1, or uint8; an image is one frame.
        suffix: One of those in `formats`; a video as png becomes a sheet of its frames.
        fps: Frames a second, for mp4 and gif.
        sound: What goes with a video; only mp4 holds it.
    """
    pixels = to_bytes(frames)
    if suffix == ".mp4":
        return _mp4(pixels, fps, sound=sound)
    if sound is not None:
        write, remark = encode(frames, suffix, fps)
        return write, ", ".join(filter(None, (remark, "without its sound, which only mp4 holds")))
    if suffix == ".gif":
        return _gif(pixels, fps)
    if suffix not in IMAGE_SUFFIXES:
        raise ValueError(f"no encoder for {suffix!r}")
    if len(pixels) == 1:
        return _picture(Image.fromarray(pixels[0])), ""
    if suffix != ".png":
        raise ValueError(f"a video of {len(pixels)} frames cannot be a {suffix} file")
    sheet, shown = film_sheet(pixels)
    return _picture(sheet), "as one sheet" if shown == len(pixels) else f"as a sheet of {shown} of them"


def mp4(pixels: np.ndarray, fps: float, *, share: float = 1.0, crf: int | str | None = None) -> bytes:
    """A film (T, H, W, 3), uint8, as the bytes of an mp4 file, with its sides at a share of theirs.

    `crf` is x264's bound on quality: larger is smaller and worse; the usual one if left out.
    """
    write, _ = _mp4(pixels, fps, share, crf)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write(path)
        return path.read_bytes()


def _picture(image: Image.Image) -> Writer:
    def write(path: Path) -> None:
        image.save(path, quality=_QUALITY)

    return write


def _gif(pixels: np.ndarray, fps: float) -> tuple[Writer, str]:
    # One palette for all frames, since one palette each flickers.
    strip = Image.fromarray(pixels.reshape(-1, pixels.shape[2], 3))
    palette = strip.quantize(256, dither=Image.Dither.NONE)
    frames = [Image.fromarray(p).quantize(palette=palette, dither=Image.Dither.NONE) for p in pixels]
    # Rounding the times instead of the durations keeps the length of the whole.
    times = np.rint(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    durations = [int(d) * 10 for d in np.diff(times)]

    def write(path: Path) -> None:
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)

    return write, f"most viewers show a gif at {_GIF_FASTEST} fps or less" if fps > _GIF_FASTEST else ""


def _mp4(
    pixels: np.ndarray, fps: float, share: float = 1.0, crf: int | str | None = None, sound: Sound | None = None
) -> tuple[Writer, str]:
    height, width = pixels.shape[1:3]
    # The format halves the colour resolution, so that its sides are even; the last row and column are repeated.
    even = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    remark = (
        "" if even.shape == pixels.shape else f"padded to {even.shape[2]}x{even.shape[1]}, since mp4 needs even sides"
    )

    def write(path: Path) -> None:
        # Imported late, because it looks for its program when it is imported.
        import imageio_ffmpeg

        with TemporaryDirectory() as folder:
            heard = None
            if sound is not None:
                heard = Path(folder) / "sound.wav"
                sound.write_wav(heard)
            command = [
                imageio_ffmpeg.get_ffmpeg_exe(),
                *_ffmpeg_arguments(even.shape[2], even.shape[1], fps, share, _CRF if crf is None else crf, heard),
                str(path),
            ]
            done = subprocess.run(command, input=even.tobytes(), capture_output=True)
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"]
            # The line begins with the part of ffmpeg that speaks and its address in memory.
            reason = re.sub(r"^\[[^]]*\] ", "", lines[-1])
            raise OSError(f"ffmpeg failed: {reason}")

    return write, remark


def _ffmpeg_arguments(
    width: int, height: int, fps: float, share: float, crf: int | str, heard: Path | None
) -> list[str]:
    colours = [
        "-color_range",
        "tv",
        "-colorspace",
        "bt709",
        "-color_primaries",
        "bt709",
        "-color_trc",
        "bt709",
    ]
    # Even sides again.
    sides = [max(2, 2 * round(side * share / 2)) for side in (width, height)]
    scaled = "" if share == 1 else f"{sides[0]}:{sides[1]}:flags=area:"
    return [
        *("-hide_banner", "-loglevel", "error", "-y"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"),
        *(["-an"] if heard is None else ["-i", str(heard), "-c:a", "aac", "-b:a", "192k", "-flags:a", "+bitexact"]),
        *("-vf", f"scale={scaled}in_range=full:out_range=tv:out_color_matrix=bt709"),
        *("-c:v", "libx264", "-preset", "slow", "-crf", str(crf), "-pix_fmt", "yuv420p", *colours),
        *("-threads", "1", "-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact"),
        *("-movflags", "+faststart", "-f", "mp4"),
    ]
