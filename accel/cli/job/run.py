"""The work of a job: what is there is left, what is missing is made, each line for itself."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import accel
from accel.cli import call, methods, recorded
from accel.cli.exits import in_one_line, note
from accel.cli.job import report
from accel.cli.job.claims import Claims
from accel.cli.job.plan import Item, Plan, check_on, plan
from accel.cli.job.processes import Processes
from accel.cli.job.progress import Progress
from accel.cli.job.prompts import Line
from accel.cli.job.report import Outcome
from accel.cli.job.state import Found, Standing, keep_error, look, of_model
from accel.cli.methods import MethodOptions
from accel.cli.once import Done, call_once
from accel.cli.prepare import number_format, place
from accel.cli.printing import Format
from accel.cli.request import Request
from accel.cli.run_generate import Ready, chosen_methods, load_ready
from accel.errors import AccelError
from accel.pipelines import demo
from accel.pipelines.loading import look_up, weights_hash
from accel.reporting import side_file
from accel.reporting.files import WriteError, leftovers, text_writer, write_together
from accel.reporting.video import encode
from accel.session import Session


@dataclass(frozen=True)
class Job:
    """What `accel generate --prompts` was asked, with the file read; `base` holds for lines that say nothing else."""

    file: Path
    lines: Sequence[Line]
    folder: Path
    base: Request
    options: MethodOptions
    overwrite: bool
    form: Format


def carry_out(job: Job, processes: Processes) -> None:
    """Makes this process's share of what is missing; returns when all processes are done and every line is there.

    Raises `AccelError`, with nothing written, for what cannot work, and `RunFailed` when lines are still missing.
    """
    began = time.perf_counter()
    config, origin = chosen_methods(job.base, job.options)
    device = processes.device(place(job.base))
    pipeline, stored = look_up(job.base.model, revision=job.base.revision)
    todo = plan(job.file, job.lines, job.folder, job.base, pipeline, config, number_format(job.base, device))
    found = {item.number: look(item) for item in todo.items}
    if any(each.standing is Standing.DONE for each in found.values()):
        weights = _weights(job.base, stored)
        found = {item.number: of_model(found[item.number], item, weights=weights) for item in todo.items}
    else:
        weights = None
    _refuse_others(todo, found, overwrite=job.overwrite)
    progress = Progress(todo, processes, job.form)
    progress.introduce(found)
    progress.say(f"{origin}: {methods.describe(config)}")

    group = processes.join(device)
    outcomes: list[Outcome] = []
    load_seconds = 0.0
    # Weights of the hub are known only once they are loaded.
    if weights is None or any(each.standing is not Standing.DONE for each in found.values()):
        progress.say(f"loading {job.base.model}")
        ready = load_ready(job.base, config, device, weights)
        load_seconds = ready.load_seconds
        dtype = str(ready.pipe.dtype).removeprefix("torch.")
        before = found
        found = {
            item.number: of_model(before[item.number], item, weights=ready.weights, dtype=dtype) for item in todo.items
        }
        _refuse_others(todo, found, overwrite=job.overwrite)
        progress.made_again({number: each.why for number, each in found.items() if each is not before[number]})
        check_on(ready.pipe, todo, job.base)
        progress.begin(found)
        share = todo.items[processes.rank :: processes.count]
        outcomes = _Worker(job, todo, ready, progress).work(share, found)
    else:
        outcomes = [Outcome(item.number, "there before") for item in todo.items]
    progress.wait()
    said = group.gather(outcomes)
    if not processes.main:
        report.leave(said)
        return
    report.conclude(
        todo,
        said,
        form=job.form,
        config=config,
        seconds={"load": load_seconds, "all": time.perf_counter() - began},
    )


def _weights(base: Request, stored: Path) -> str | None:
    """The hash of the weights, where they lie in a folder that is known to be whole."""
    if base.model == "demo":
        return weights_hash(demo.WEIGHTS)
    return weights_hash(stored) if Path(base.model).expanduser().is_dir() else None


def _refuse_others(todo: Plan, found: dict[int, Found], *, overwrite: bool) -> None:
    """Refuses when something else is in the place of an output; with `overwrite` only where it cannot be replaced."""
    wrong = [
        item
        for item in todo.items
        if found[item.number].standing is Standing.OTHER
        and (not overwrite or item.media.is_dir() or item.side.is_dir())
    ]
    if wrong:
        first, more = wrong[0], len(wrong) - 1
        others = f" ({more} more {'line is' if more == 1 else 'lines are'} like that)" if more else ""
        way = "take it away" if overwrite else "add --overwrite to make such lines again"
        raise AccelError(
            f"{todo.blame(first)}: {found[first.number].why}{others}; choose another folder with --output, or {way}"
        )


def _stems(item: Item) -> set[str]:
    return {item.media.stem, item.error.stem}


class _Worker:
    """One process at its share of the lines, with the pipeline loaded and accelerated once."""

    def __init__(self, job: Job, todo: Plan, ready: Ready, progress: Progress) -> None:
        self._job = job
        self._todo = todo
        self._ready = ready
        self._dtype = str(ready.pipe.dtype).removeprefix("torch.")
        self._progress = progress
        self._outcomes: list[Outcome] = []
        # Why no further line is begun.
        self._stopped: str | None = None
        self._could_write = True

    def work(self, share: Sequence[Item], found: dict[int, Found]) -> list[Outcome]:
        """Makes what is missing of the share; a line that fails is reported, and the next is begun."""
        remains = leftovers(self._job.folder)
        left = []
        for item in share:
            if found[item.number].standing is not Standing.DONE or remains.keys() & _stems(item):
                left.append(item)
            else:
                item.error.unlink(missing_ok=True)
                self._outcomes.append(Outcome(item.number, "there before"))
        # With lines left for another process, what is refused here is refused by all processes alike.
        if not left and all(each.standing is Standing.DONE for each in found.values()):
            return self._outcomes
        acceleration: contextlib.AbstractContextManager[Session | None] = contextlib.nullcontext()
        if self._ready.config.methods:
            # What it refuses is refused before there is a folder.
            acceleration = accel.enable(self._ready.pipe, self._ready.config)
        try:
            with acceleration as session:
                self._job.folder.mkdir(parents=True, exist_ok=True)
                with contextlib.closing(Claims(self._job.folder)) as claims:
                    # What another job is at is looked at again at the end.
                    for wait in (False, True):
                        left = [item for item in left if not self._settle(item, session, claims, remains, wait=wait)]
        except KeyboardInterrupt:
            self._progress.interrupted()
            raise
        return self._outcomes

    def _settle(
        self, item: Item, session: Session | None, claims: Claims, remains: dict[str, list[Path]], *, wait: bool
    ) -> bool:
        """Makes the line if it is missing still, unless another job is at it."""
        if self._stopped is not None:
            self._end(Outcome(item.number, "not begun", why=self._stopped))
            return True
        if wait:
            self._progress.say(f"waiting for line {item.number}, which another accel is making")
        with claims.claim(item.media.name, wait=wait) as mine:
            if not mine:
                return False
            for stem in _stems(item):
                for path in remains.pop(stem, []):
                    path.unlink(missing_ok=True)
            now = of_model(look(item), item, weights=self._ready.weights, dtype=self._dtype)
            if now.standing is Standing.DONE:
                item.error.unlink(missing_ok=True)
                self._end(Outcome(item.number, "there before"))
            else:
                self._attempt(item, now, session)
        return True

    def _attempt(self, item: Item, now: Found, session: Session | None) -> None:
        self._progress.start(item, self._ready.pipe)
        began = time.perf_counter()
        try:
            if now.standing is Standing.OTHER and not self._job.overwrite:
                raise AccelError(f"{now.why}; it was put there while the job ran")
            # A side file without its output is what a process left that was killed while it put them there.
            self._make(item, session, replacing=self._job.overwrite or os.path.lexists(item.side))
        except Exception as error:
            self._fail(item, error)
        else:
            self._could_write = True
            item.error.unlink(missing_ok=True)
            self._end(Outcome(item.number, "made", time.perf_counter() - began))
        finally:
            if session is not None:
                session.forget()

    def _make(self, item: Item, session: Session | None, *, replacing: bool) -> None:
        ready = self._ready
        # Which of several devices it was by chance says nothing to whoever makes it again.
        device = self._job.base.device or torch.device(ready.request.device or "cpu").type
        asked = replace(item.request, dtype=ready.request.dtype, device=device)
        timed = call_once(ready.pipe, asked, call.call_arguments(ready.pipe, asked))
        frames = call.frames_of(timed.output)
        sound = call.sound_of(ready.pipe, timed.output)
        summary = session.summary() if session is not None else None
        done = Done(frames, sound, timed.seconds, timed.loop_seconds, summary)
        data = recorded.describe(replace(ready, request=asked), done, item.media, None)
        data["job"] = {"prompts": self._todo.file.name, "line": item.number, "asked": dict(item.asked)}
        media, _ = encode(frames, item.media.suffix.lower(), data["output"]["fps"] or 1, sound)
        write_together({item.side: text_writer(side_file.to_json(data)), item.media: media}, overwrite=replacing)

    def _fail(self, item: Item, error: Exception) -> None:
        line = in_one_line(error)
        details = traceback.format_exc()
        if hasattr(self._ready.pipe, "maybe_free_model_hooks"):
            # With --cpu-offload model, what the run had brought onto the device stays there otherwise.
            self._ready.pipe.maybe_free_model_hooks()
        if isinstance(error, WriteError):
            # Where the system refuses, or nothing could be written twice, the next line would fail as well.
            if getattr(error.__cause__, "errno", None) is not None or not self._could_write:
                self._stopped = line
            self._could_write = False
        try:
            keep_error(item, line, details)
        except OSError as trouble:
            note(f"that line {item.number} failed could not be written down: {in_one_line(trouble)}")
        self._end(Outcome(item.number, "failed", why=line))

    def _end(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._progress.end(outcome)
