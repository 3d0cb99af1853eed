"""VMAF by the ffmpeg that is installed: its range, its order, its refusals, and nothing left behind."""

import stat
import tempfile

import imageio_ffmpeg
import numpy as np
import pytest

from accel.errors import AccelError
from accel.measure.vmaf import vmaf


def clip(frames=6, height=48, width=50):
    """Smooth stripes that move to the right."""
    x = np.arange(width)[None, None] - 2 * np.arange(frames)[:, None, None]
    plane = 0.5 + 0.3 * np.sin(0.4 * x + 0.1 * np.arange(height)[None, :, None])
    return np.repeat(plane[..., None], 3, axis=-1)


def noisy(frames, sigma):
    return (frames + sigma * np.random.default_rng(0).standard_normal(frames.shape)).clip(0, 1)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def wrapped(tmp_path, monkeypatch, body):
    """Puts a shell script in the place of ffmpeg; in its body $FFMPEG is the real one."""
    script = tmp_path / "ffmpeg"
    script.write_text(f"#!/bin/bash\nFFMPEG='{imageio_ffmpeg.get_ffmpeg_exe()}'\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))


def test_equal_clips_get_what_the_docstring_says(temporary):
    moving, still = clip(), np.repeat(clip(1), 6, axis=0)
    assert 97.4 < vmaf(moving, moving) <= 100
    assert vmaf(still, still) == pytest.approx(97.43, abs=0.01)
    assert vmaf(still[0], still[0]) == pytest.approx(97.43, abs=0.01)
    assert list(temporary.iterdir()) == []


def test_the_more_noise_the_less_vmaf():
    reference = clip()
    scores = [vmaf(noisy(reference, sigma), reference) for sigma in (0.02, 0.06, 0.2)]
    assert 100 > scores[0] > scores[1] > scores[2] >= 0
    assert scores[0] - scores[2] > 20
    assert vmaf(noisy(reference, 0.06), reference) == scores[1]


def test_which_clip_is_the_reference_is_not_mixed_up():
    """Detail that the clip adds counts for it; detail that it lacks counts against it."""
    sharp = clip()
    flat = 0.5 + 0.4 * (sharp - 0.5)
    assert vmaf(flat, sharp) < vmaf(sharp, flat) - 10


def test_only_the_luma_is_seen_and_not_its_mean():
    """BT.709: where red grows and green shrinks by 0.2126 / 0.7152 of it, the luma stays, to within rounding."""
    reference = clip()
    grain = np.random.default_rng(0).uniform(-0.2, 0.2, (*reference.shape[:3], 1))
    colour = np.array([1.0, -0.2126 / 0.7152, 0.0])
    best = vmaf(reference, reference)
    assert vmaf(reference + grain * colour, reference) > best - 2
    assert vmaf(reference + grain, reference) < best - 10
    assert vmaf(reference + 0.15, reference) > 99


def test_small_frames_are_refused_before_libvmaf_crashes():
    with pytest.raises(AccelError, match="33 pixels a side, the frames have 32x50"):
        vmaf(clip(height=32), clip(height=32))
    assert vmaf(clip(height=33, width=33), clip(height=33, width=33)) > 97.4


def test_an_ffmpeg_without_libvmaf_is_refused_in_one_line(tmp_path, monkeypatch, temporary):
    body = '"$FFMPEG" "${@//libvmaf=/libxmaf=}" 2> >(sed s/libxmaf/libvmaf/ >&2)'
    wrapped(tmp_path, monkeypatch, body)
    with pytest.raises(AccelError, match="has no libvmaf") as refusal:
        vmaf(clip(), clip())
    assert "\n" not in str(refusal.value)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("cat > /dev/null; echo first >&2; echo out of order >&2; exit 3", "exit code 3.*: out of order"),
        ("cat > /dev/null; exit 0", "exit code 0.*it said nothing"),
        ('exec "$FFMPEG" -t 0.1 "$@"', "measured 3 of 6 frames"),
    ],
)
def test_an_ffmpeg_that_fails_is_refused_in_one_line(tmp_path, monkeypatch, temporary, body, complaint):
    wrapped(tmp_path, monkeypatch, body)
    with pytest.raises(AccelError, match=complaint) as refusal:
        vmaf(clip(), clip())
    assert "\n" not in str(refusal.value)
    assert list(temporary.iterdir()) == []


def test_no_ffmpeg_at_all(monkeypatch):
    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(AccelError, match="needs an ffmpeg with libvmaf"):
        vmaf(clip(), clip())
