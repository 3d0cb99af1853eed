"""VMAF: a learned measure of what a viewer notices, from the ffmpeg that imageio-ffmpeg ships."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import torch

from accel.errors import AccelError
from accel.measure.frames import as_bytes, as_pair

MODEL = "vmaf_v0.6.1"
# Measured: libvmaf's four scales crash below 17 pixels, and below 33 equal noise gets 85 instead of 97.
LEAST_SIDE = 33
_LUMA = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd,format=yuv444p"


def vmaf(clip: Any, reference: Any) -> float:
    """VMAF (Li et al., "Toward a practical perceptual video quality metric", 2016), model vmaf_v0.6.1 as built into
    libvmaf, mean over frames: from 0, bad, to 100.

    Equal clips do not always get 100: a frame without motion before it gets 97.4, so that a picture or a clip that
    stands still gets 97.4 at best, and a moving one up to 100. The model was trained on people who watched 1080p
    from three heights away; on small frames its figures rank settings and say little by themselves.

    Frames are rounded to 8 bits and converted by ffmpeg from RGB to yuv444p, BT.709, limited range; the model reads
    the luma alone, and hardly its mean: a clip brightened by 0.15 gets 99. Read it beside PSNR. Nothing is encoded,
    and no file is left.

    Args:
        clip, reference: clips (T, H, W, 3) or pictures (H, W, 3), tensors or arrays, in [0, 1].

    Raises:
        ValueError: as for :func:`accel.measure.frames.as_pair`.
        AccelError: frames of fewer than 33 pixels a side, no ffmpeg, one without libvmaf, or one that fails.
    """
    first, second = as_pair(clip, reference)
    frames, height, width, _ = first.shape
    if min(height, width) < LEAST_SIDE:
        raise AccelError(f"VMAF needs {LEAST_SIDE} pixels a side, the frames have {height}x{width}")
    # Both clips go through one pipe, the reference below the clip, so that their frames cannot come apart.
    pixels = torch.cat([as_bytes(first), as_bytes(second)], dim=1).numpy().tobytes()
    crops = [f"crop={width}:{height}:0:{top}:exact=1,{_LUMA}" for top in (0, height)]
    graph = (
        f"split[top][bottom];[top]{crops[0]}[clip];[bottom]{crops[1]}[reference];"
        f"[clip][reference]libvmaf=model=version={MODEL}:log_fmt=json:log_path=log.json"
    )
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{2 * height}", "-i", "pipe:0"]
    ffmpeg = _ffmpeg()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [ffmpeg, "-hide_banner", "-loglevel", "error", *raw, "-filter_complex", graph, "-f", "null", "-"],
            input=pixels,
            capture_output=True,
            cwd=folder,
        )
        complaint = done.stderr.decode(errors="replace")
        if "No such filter: 'libvmaf'" in complaint:
            raise AccelError(f"{ffmpeg} has no libvmaf: unset IMAGEIO_FFMPEG_EXE or name an ffmpeg that has it")
        log = Path(folder) / "log.json"
        if done.returncode or not log.exists():
            last = (complaint.strip().splitlines() or ["it said nothing"])[-1]
            raise AccelError(f"{ffmpeg} measured no VMAF (exit code {done.returncode}): {last}")
        found = json.loads(log.read_text())
    if len(found["frames"]) != frames:
        raise AccelError(f"{ffmpeg} measured {len(found['frames'])} of {frames} frames")
    return float(found["pooled_metrics"]["vmaf"]["mean"])


def _ffmpeg() -> str:
    try:
        # A path that names a file next to where this process runs would be looked for in the temporary folder.
        return str(Path(imageio_ffmpeg.get_ffmpeg_exe()).absolute())
    except RuntimeError as error:
        raise AccelError(
            "VMAF needs an ffmpeg with libvmaf: reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to one"
        ) from error
