"""`--compare-dense`: the accelerated run beside the plain one, with the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accel.cli.once import Done, run_once, warm_up
from accel.cli.request import Request
from accel.config import AccelConfig
from accel.measure.judge import judge
from accel.measure.verdict import SpeedUp, reds, speed_up
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
    """Seconds, speed-up and likeness as plain data; `psnr_db` is None for equal frames, which `same_bits` tells.

    The speed-ups are None where `unsaid` says why: of a clip that is broken, stands still, flickers or shows something
    else.
    """
    scenes = request.model == "demo"
    reference = judge(plain.frames, None, request.prompt, scenes=scenes)
    unsaid = reds([_told(reference)])
    if unsaid:
        # What lies beside a clip of values that are not finite says nothing.
        found = judge(done.frames, None, request.prompt, scenes=scenes)
        unsaid = [f"the plain run: {reason}" for reason in unsaid]
    else:
        found = judge(done.frames, plain.frames, request.prompt, scenes=scenes)
        unsaid = reds([_told(found)])
    whole = None if unsaid else speed_up([plain.seconds], [done.seconds])
    loop = None if unsaid else _of_loops(plain, done)
    return {
        "plain": _one(plain, reference),
        "accelerated": _one(done, found),
        "speedup": whole and whole.ratio,
        "speedup_text": whole and str(whole),
        "loop_speedup": loop and loop.ratio,
        "unsaid": unsaid,
        "psnr_db": _told(found)["psnr_db"],
        "ssim": found["ssim"],
        "same_bits": frames_sha256(done.frames) == frames_sha256(plain.frames),
        "runs": 1,
        "warmup_steps": _WARM_UP_STEPS,
    }


def lines(comparison: dict[str, Any]) -> list[str]:
    """The comparison for a person."""
    out = [_row(name, comparison[name]) for name in ("plain", "accelerated")]
    loop = comparison["loop_speedup"]
    if comparison["unsaid"]:
        speed = f"no speed-up is said: {'; '.join(comparison['unsaid'])}"
    else:
        speed = f"speed-up {comparison['speedup_text']}" + (f", in the loop {loop:.2f}×" if loop else "")
    if comparison["same_bits"]:
        likeness = "same bits as the plain run"
    else:
        psnr, ssim = comparison["psnr_db"], comparison["ssim"]
        likeness = f"PSNR {psnr:.1f} dB" if psnr is not None else "no PSNR"
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


def _told(judged: dict[str, Any]) -> dict[str, Any]:
    """As `reds` reads it; the PSNR of equal pixels is infinite, which JSON has no number for."""
    decibels = judged["psnr_db"]
    return {**judged, "psnr_db": decibels if decibels is None or math.isfinite(decibels) else None, "repeats": None}


def _of_loops(plain: Done, done: Done) -> SpeedUp | None:
    if not plain.loop_seconds or not done.loop_seconds:
        return None
    return speed_up([plain.loop_seconds], [done.loop_seconds])


def _one(done: Done, judged: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": done.seconds, "loop_seconds": done.loop_seconds, "prompt_accuracy": judged["score"]}


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
