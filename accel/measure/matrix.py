"""Settings × prompts × seeds on one pipeline: in which order, warmed up, judged, each finished run kept at once."""

from __future__ import annotations

import hashlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import accel
from accel.errors import AccelError, AccelWarning
from accel.measure.cells import Cell, Place, Store
from accel.measure.one_run import TimedRun
from accel.measure.rivals import mag_ratios
from accel.measure.trial import Setting, attempt

# Far from the seeds that anybody counts from.
_CALIBRATION_SEED = 1_000_003


@dataclass(frozen=True)
class Work:
    """What a benchmark does with a pipeline.

    `steps` are those of a call that says nothing else, where they are known. `arguments` gives those of a call for a
    place and a number of steps (None: the call's own); `call` calls and times; `frames` takes the first result of an
    output, (T, H, W, 3) float32 in 0..1; `judge` gives the quality figures of frames beside the baseline's (None for
    the baseline itself).
    """

    pipe: Any
    steps: int | None
    arguments: Callable[[Place, int | None], Mapping[str, Any]]
    call: Callable[[Mapping[str, Any]], TimedRun]
    frames: Callable[[Any], np.ndarray]
    judge: Callable[[np.ndarray, np.ndarray | None, Place], dict[str, Any]]


class NotGivenBack(RuntimeError):
    """After a setting the plain pipeline gave other bits than before."""


def order(settings: Sequence[Setting], baseline: Setting, places: Sequence[Place]) -> Iterator[tuple[Setting, Place]]:
    """All cells: place by place, the baseline first, the others in turn, beginning one later at each place.

    So that a machine that slows down does so to all, and none is always measured right after the same other one.
    """
    others = [one for one in settings if one.fingerprint != baseline.fingerprint]
    for index, place in enumerate(places):
        start = index % len(others) if others else 0
        for setting in (baseline, *others[start:], *others[:start]):
            yield setting, place


def check(pipe: Any, settings: Sequence[Setting]) -> None:
    """Puts each setting of Accel on the pipeline and takes it off again, so that what is refused is so before a run.

    Raises:
        AccelError: the refusal, with the setting's name.
    """
    for setting in settings:
        if setting.rival is None and setting.config.methods:
            try:
                accel.enable(pipe, setting.config).disable()
            except AccelError as error:
                raise AccelError(f"setting {setting.name!r}: {error}") from error


def measure(
    work: Work,
    settings: Sequence[Setting],
    baseline: Setting,
    places: Sequence[Place],
    store: Store,
    *,
    warmup: int,
    keep: Callable[[Place], bool],
    on_cell: Callable[[Setting, Place, Cell], None],
    turn: Callable[[Place], AbstractContextManager[bool]] = lambda place: nullcontext(True),
) -> None:
    """Makes every cell that the store has not.

    Args:
        work: the pipeline and what is done with it.
        settings, baseline, places: what is measured, in the order that :func:`order` tells.
        store: has the finished cells, and gets the new ones.
        warmup: steps of a run of each setting before its first measured one; 0 for none.
        keep: whether the clips of a place are kept to be looked at.
        on_cell: told of each new cell.
        turn: around all cells of a place, tells whether this process makes them; those that the store has by then are
            not made.

    Raises:
        NotGivenBack: a setting changed the pipeline for good; nothing that is measured after it could be trusted.
        Exception: whatever the baseline's own run raises. What another setting's run raises, or a larger batch, stands
            in its cell.
    """
    warm = _WarmUp(work, places[0], warmup)
    for place, row in itertools.groupby(order(settings, baseline, places), key=lambda pair: pair[1]):
        with turn(place) as mine:
            for setting, _ in row if mine else ():
                if store.find(setting, place) is None:
                    cell = _cell(work, warm, setting, baseline, place, store, keep)
                    store.add(cell)
                    on_cell(setting, place, cell)


def _cell(
    work: Work,
    warm: _WarmUp,
    setting: Setting,
    baseline: Setting,
    place: Place,
    store: Store,
    keep: Callable[[Place], bool],
) -> Cell:
    """The finished run of a setting at a place; its frames are kept where they are needed."""
    try:
        told = warm.up(setting, place.batch)
        began = time.time()
        trial = attempt(work.pipe, told, work.arguments(place, setting.steps), work.call)
        figures = {**trial.figures, "began": began, "warmup_steps": warm.steps, "given_back": warm.given_back(setting)}
        if place.batch == 1:
            frames = work.frames(trial.output)
            figures["quality"] = _judged(work, store, setting, baseline, place, frames)
            if setting.fingerprint == baseline.fingerprint and place.repeat == 0:
                store.keep_reference(setting, place, frames)
            if keep(place):
                store.keep_clip(setting, place, _pixels(frames))
        return Cell(setting.fingerprint, place, figures)
    except NotGivenBack:
        raise
    except Exception as error:
        if setting.fingerprint == baseline.fingerprint and place.batch == 1:
            raise
        return Cell(setting.fingerprint, place, {}, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _judged(
    work: Work, store: Store, setting: Setting, baseline: Setting, place: Place, frames: np.ndarray
) -> dict[str, Any]:
    """The quality of a run beside the baseline's first one of the same prompt and seed."""
    first = Place(place.prompt, place.seed)
    is_baseline = setting.fingerprint == baseline.fingerprint
    reference = None if is_baseline and place == first else store.reference(baseline, first)
    if reference is None and not (is_baseline and place == first):
        raise RuntimeError(f"the baseline's frames are gone from {store.folder}; measure all again with --fresh")
    digest = sha256_of(frames)
    same = reference is not None and reference.shape == frames.shape and sha256_of(reference) == digest
    before = store.find(setting, first) if place != first else None
    known = None if before is None or before.error is not None else before.figures["quality"]["sha256"]
    judged = work.judge(frames, None if is_baseline else reference, place)
    decibels = judged["psnr_db"]
    return {
        **judged,
        # Of equal pixels it is infinite, which JSON has no number for; `same_bits` tells.
        "psnr_db": decibels if decibels is None or np.isfinite(decibels) else None,
        "sha256": digest,
        "same_bits": same and not is_baseline,
        "repeats": None if known is None else known == digest,
    }


class _WarmUp:
    """A short run of each setting and batch before its first measured one, and what a rival must know of the model.

    The plain pipeline must stay as it was between them.
    """

    def __init__(self, work: Work, place: Place, steps: int) -> None:
        self._work = work
        self._place = place
        self.steps = steps
        self._done: set[tuple[str, int]] = set()
        self._plain: str | None = None
        self._steady = True
        self._ratios: dict[int, list[float]] = {}

    def up(self, setting: Setting, batch: int = 1) -> Setting:
        """Runs the setting for a few steps, once for each batch; returns it with what it must be told besides."""
        if setting.rival == "magcache" and "mag_ratios" not in setting.rival_settings:
            setting = self._with_ratios(setting)
        for size in dict.fromkeys((1, batch)) if self.steps >= 1 else ():
            if (setting.fingerprint, size) not in self._done:
                if size == 1:
                    self._run_short(setting)
                else:
                    # The autoencoder too, which has not seen so many yet.
                    self._run(replace(setting, steps=self.steps), {}, size)
                self._done.add((setting.fingerprint, size))
        return setting

    def given_back(self, setting: Setting) -> bool | None:
        """Whether the plain pipeline gave its bits after the setting; False where it does not repeat them by itself, so
        that this is not known, None of the plain pipeline and without warm-up."""
        return None if setting.plain or self._plain is None else self._steady

    def _run_short(self, setting: Setting) -> None:
        if self._plain is None:
            # The whole call first, so that the autoencoder is warm too.
            self._run(Setting("plain", steps=self.steps), {})
            self._plain = self._run_plain()
            self._steady = self._run_plain() == self._plain
        if not setting.plain:
            try:
                self._run(replace(setting, steps=self.steps), {"output_type": "latent"})
            finally:
                # Also after one that failed, which may have come off by halves.
                if self._steady and self._run_plain() != self._plain:
                    raise NotGivenBack(
                        f"after {setting.name!r} the plain pipeline gave other bits than before, so that nothing "
                        "measured from here on could be trusted; leave that setting out"
                    )

    def _with_ratios(self, setting: Setting) -> Setting:
        """MagCache with its ratios, of a plain run of the first prompt with a seed that is not measured."""
        other = replace(self._place, seed=self._place.seed + _CALIBRATION_SEED)
        steps = setting.steps or self._work.steps
        if steps is None:
            raise AccelError("MagCache must know the number of steps; give it with steps=")
        arguments = self._work.arguments(other, steps)
        if steps not in self._ratios:
            self._ratios[steps] = mag_ratios(self._work.pipe, steps, lambda: self._work.call(arguments))
        told = {"mag_ratios": self._ratios[steps], "num_inference_steps": steps}
        return replace(setting, rival_settings={**setting.rival_settings, **told})

    def _run_plain(self) -> str:
        return self._run(Setting("plain", steps=self.steps), {"output_type": "latent"})

    def _run(self, setting: Setting, more: dict[str, Any], batch: int = 1) -> str:
        arguments = {**self._work.arguments(replace(self._place, batch=batch), self.steps), **more}
        with warnings.catch_warnings():
            # In so few steps a method may find nothing to do, and says so.
            warnings.simplefilter("ignore", AccelWarning)
            return _digest(attempt(self._work.pipe, setting, arguments, self._work.call).output)


def sha256_of(frames: np.ndarray) -> str:
    """Of the shape and the float32 values."""
    values = np.ascontiguousarray(frames, dtype="<f4")
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()


def _digest(output: Any) -> str:
    found = output.frames if hasattr(output, "frames") else output.images
    if isinstance(found, torch.Tensor):
        return sha256_of(found.float().cpu().numpy())
    return sha256_of(np.asarray(found if isinstance(found, np.ndarray) else found[0]))


def _pixels(frames: np.ndarray) -> np.ndarray:
    return (np.clip(np.nan_to_num(frames), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
