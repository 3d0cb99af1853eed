"""All figures of a clip's quality at once, beside a reference of the same seed, and what is wrong with it in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel.errors import AccelError
from accel.measure.clip_score import ClipScore
from accel.measure.frames import as_frames, as_pair
from accel.measure.lpips import Lpips
from accel.measure.prompt_accuracy import score
from accel.measure.quality import ms_ssim, psnr, ssim
from accel.measure.temporal import STILL, flicker, frozen_share, motion
from accel.measure.vmaf import vmaf

FIGURES = (
    *("psnr_db", "ssim", "ms_ssim", "vmaf", "lpips"),
    *("motion", "motion_ratio", "frozen_share", "flicker", "flicker_ratio"),
    *("prompt_accuracy", "clip_score"),
)

# From where on a figure is flagged, chosen by us on samples of the built-in model at 128x128: its presets and half its
# steps give 27 dB, SSIM 0.95 and 1.04 times the flicker at worst, a quarter of its steps 21 dB, 0.81 and 1.3; a shift
# by 8 pixels 20.1 to 21.7 dB, noise of 0.02 from 2.2 times the flicker. A shift by 4 pixels, 25 dB, may pass.
MOST_FROZEN = 0.1
MOST_FLICKER_RATIO = 1.5
MOST_FLICKER_EXCESS = 1e-3
LEAST_PSNR_DB = 22.0
LEAST_SSIM = 0.7


def judge(
    frames: Any,
    reference: Any | None,
    prompt: str | None = None,
    *,
    scenes: bool = True,
    lpips: Lpips | None = None,
    clip_score: ClipScore | None = None,
) -> dict[str, Any]:
    """Measures a clip or a picture in every way that its size, its length and what is at hand allow.

    A figure that cannot be had is None and has its reason; nothing is raised for a picture or for small frames.

    Args:
        frames: a clip (T, H, W, 3) or a picture (H, W, 3), tensor or array, in [0, 1].
        reference: what the plain run of the same seed gives, of the same shape; None for that run itself.
        prompt: what the clip was asked to show; :func:`accel.measure.prompt_accuracy.score` reads the words of the
            built-in model's scenes, and motion is not asked of a picture.
        scenes: whether the prompt speaks of those scenes; False for other models, of which nothing is detected.
        lpips, clip_score: measures whose weights the caller has.

    Returns:
        A float or None for each of :data:`FIGURES`: "psnr_db" (infinite for equal pixels), "ssim", "ms_ssim", "vmaf"
        and "lpips" beside the reference; "motion" and "flicker" of the clip, the same as shares of the reference's
        ("motion_ratio", "flicker_ratio"), and "frozen_share" of its moving steps; "prompt_accuracy", the share of
        what the prompt names that the clip shows, and "clip_score". Beside them:

        - "score": which of the named attributes it shows, for :func:`accel.measure.prompt_accuracy.share_right`;
          None where "prompt_accuracy" is.
        - "flags": what is wrong, a sentence for each of "broken" (values that are not finite; no figure then),
          "unlike" (PSNR below 22 dB or SSIM below 0.7), "frozen" (in a tenth of the moving steps or more),
          "flicker" (half as much again as the reference, and 0.001 more) and "prompt" (something named is missing).
          Empty for a faithful clip. The bounds are chosen by us.
        - "reasons": why a figure is None, by its name.

    Raises:
        ValueError: no frames (T, H, W, 3), a reference of another shape, or finite values outside [0, 1].
    """
    given = torch.as_tensor(frames).detach()
    if not torch.isfinite(given).all():
        why = "the clip has values that are not finite"
        none: dict[str, Any] = dict.fromkeys(FIGURES)
        return {**none, "score": None, "flags": {"broken": why}, "reasons": dict.fromkeys(FIGURES, why)}
    clip, other = (as_frames(given), None) if reference is None else as_pair(given, reference)
    shown: dict[str, bool] = {}

    def accuracy() -> float:
        if not scenes:
            raise AccelError("the detector knows the built-in model's scenes alone")
        shown.update(_shown(clip, prompt))
        return sum(shown.values()) / len(shown)

    measures: dict[str, Callable[[], float]] = {
        "psnr_db": lambda: psnr(clip, _there(other)),
        "ssim": lambda: ssim(clip, _there(other)),
        "ms_ssim": lambda: ms_ssim(clip, _there(other)),
        "vmaf": lambda: vmaf(clip, _there(other)),
        "lpips": lambda: _at_hand(lpips, "Lpips")(clip, _there(other)),
        "motion": lambda: motion(clip),
        "motion_ratio": lambda: _ratio(motion, clip, _there(other)),
        "frozen_share": lambda: frozen_share(clip, _there(other)),
        "flicker": lambda: flicker(clip),
        "flicker_ratio": lambda: _ratio(flicker, clip, _there(other)),
        "prompt_accuracy": accuracy,
        "clip_score": lambda: _at_hand(clip_score, "ClipScore")(clip, _asked(prompt)),
    }
    figures: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, measure in measures.items():
        try:
            figures[name] = measure()
        except AccelError as refusal:
            figures[name], reasons[name] = None, str(refusal)
    flags = {**_likeness_flags(figures), **_time_flags(figures, alone=other is None), **_prompt_flags(shown)}
    return {**figures, "score": shown or None, "flags": flags, "reasons": reasons}


def _there(reference: Tensor | None) -> Tensor:
    if reference is None:
        raise AccelError("there is no reference to compare with")
    return reference


def _asked(prompt: str | None) -> str:
    if prompt is None:
        raise AccelError("no prompt was given")
    return prompt


def _at_hand(measure: Callable[..., float] | None, name: str) -> Callable[..., float]:
    if measure is None:
        raise AccelError(f"no weights were given: pass accel.measure's {name} with the folder that has them")
    return measure


def _ratio(measure: Callable[[Tensor], float], clip: Tensor, reference: Tensor) -> float:
    theirs = measure(reference)
    if theirs < STILL:
        raise AccelError("there is no ratio to a reference that stands still")
    return measure(clip) / theirs


def _shown(clip: Tensor, prompt: str | None) -> dict[str, bool]:
    shown = score(clip, _asked(prompt))
    if len(clip) == 1:
        shown.pop("motion", None)
    if not shown:
        raise AccelError("the prompt names nothing that the detector of the built-in model's scenes looks for")
    return shown


def _likeness_flags(figures: dict[str, float | None]) -> dict[str, str]:
    decibels, similarity = figures["psnr_db"], figures["ssim"]
    found = []
    if decibels is not None and decibels < LEAST_PSNR_DB:
        found.append(f"PSNR {decibels:.1f} dB")
    if similarity is not None and similarity < LEAST_SSIM:
        found.append(f"SSIM {similarity:.3f}")
    return {"unlike": f"unlike the reference: {', '.join(found)}"} if found else {}


def _time_flags(figures: dict[str, float | None], alone: bool) -> dict[str, str]:
    flags = {}
    frozen, flickers, ratio = (figures[name] for name in ("frozen_share", "flicker", "flicker_ratio"))
    if frozen is not None and frozen >= MOST_FROZEN:
        flags["frozen"] = f"stands still in {100 * frozen:.0f} % of the steps in which the reference moves"
    if flickers is None or alone:
        return flags
    if ratio is None:
        if flickers > MOST_FLICKER_EXCESS:
            flags["flicker"] = "flickers where the reference stands still"
    elif ratio > MOST_FLICKER_RATIO and flickers * (1 - 1 / ratio) > MOST_FLICKER_EXCESS:
        flags["flicker"] = f"flickers {ratio:.1f} times as much as the reference"
    return flags


def _prompt_flags(shown: dict[str, bool]) -> dict[str, str]:
    missing = [name for name, right in shown.items() if not right]
    return {"prompt": f"does not show what the prompt asks for: {', '.join(missing)}"} if missing else {}
