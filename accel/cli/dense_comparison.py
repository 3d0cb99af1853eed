"""`--compare-dense`: the accelerated run beside the plain one, with the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accel.cli.once import Done, run_once, warm_up
from accel.cli.request import Request
from accel.config import AccelConfig
from accel.measure import prompt_accuracy, quality
from accel.reporting.contact_sheet import comparison_sheet
from accel.reporting.files import Writer
from accel.reporting.side_file import frames_sha256
from accel.reporting.video import to_bytes

_WARM_UP_STEPS = 2
_PLAIN = AccelConfig()


def run_both(pipe: Any, request: Request, config: AccelConfig, label: Callable[[str], None]) -> tuple[Done, Done]:
    """The accelerated run and the plain one, each once, after a short run of each that is not timed.

    `label` is told what the next progress bar belongs to.
    """
    label("warm-up")
    for methods in (_PLAIN, config):
        warm_up(pipe, request, methods, _WARM_UP_STEPS)
    label("plain")
    plain = run_once(pipe, request, _PLAIN)
    label("accelerated")
    return run_once(pipe, request, config), plain


def compare(done: Done, plain: Done, request: Request) -> dict[str, Any]:
    """Seconds, speed-up and likeness as plain data; `psnr_db` is None for equal frames, which `same_bits` tells."""
    psnr = quality.psnr(done.frames, plain.frames)
    large_enough = min(done.frames.shape[1:3]) >= 11
    return {
        "plain": _one(plain, request),
        "accelerated": _one(done, request),
        "speedup": plain.seconds / done.seconds,
        "loop_speedup": _ratio(plain.loop_seconds, done.loop_seconds),
        "psnr_db": psnr if math.isfinite(psnr) else None,
        "ssim": quality.ssim(done.frames, plain.frames) if large_enough else None,
        "same_bits": frames_sha256(done.frames) == frames_sha256(plain.frames),
        "runs": 1,
        "warmup_steps": _WARM_UP_STEPS,
    }


def lines(comparison: dict[str, Any]) -> list[str]:
    """The comparison for a person."""
    out = [_row(name, comparison[name]) for name in ("plain", "accelerated")]
    loop = comparison["loop_speedup"]
    speed = f"{comparison['speedup']:.2f}x as fast" + (f" ({loop:.2f}x in the loop)" if loop else "")
    if comparison["same_bits"]:
        likeness = "same bits as the plain run"
    else:
        psnr, ssim = comparison["psnr_db"], comparison["ssim"]
        likeness = f"PSNR {psnr:.1f} dB" if psnr is not None else "equal pixels"
        likeness += f", SSIM {ssim:.4f}" if ssim is not None else ""
        likeness += " against the plain run"
    return [
        *out,
        f"{speed}, {likeness}; one run each, after {comparison['warmup_steps']} steps of each to warm up",
    ]


def sheet(done: Done, plain: Done) -> Writer:
    """Both runs below each other, the same frames of each."""
    films = [
        (_caption("plain", plain), to_bytes(plain.frames)),
        (_caption("accelerated", done), to_bytes(done.frames)),
    ]
    image = comparison_sheet(films)

    def write(path: Path) -> None:
        image.save(path)

    return write


def _one(done: Done, request: Request) -> dict[str, Any]:
    shown = prompt_accuracy.score(done.frames, request.prompt) if request.model == "demo" else {}
    return {"seconds": done.seconds, "loop_seconds": done.loop_seconds, "prompt_accuracy": shown or None}


def _row(name: str, one: dict[str, Any]) -> str:
    parts = [f"{one['seconds']:.2f} s"]
    if one["loop_seconds"] is not None:
        parts.append(f"{one['loop_seconds']:.2f} s of it in the loop")
    shown = one["prompt_accuracy"]
    if shown:
        wrong = [what for what, right in shown.items() if not right]
        parts.append(
            f"shows {len(shown) - len(wrong)} of {len(shown)} attributes of the prompt"
            + (f" (not the {', '.join(wrong)})" if wrong else "")
        )
    return f"{name + ':':<13}{', '.join(parts)}"


def _caption(name: str, done: Done) -> str:
    return f"{name}, {done.seconds:.2f} s"


def _ratio(base: float | None, other: float | None) -> float | None:
    return base / other if base is not None and other else None
