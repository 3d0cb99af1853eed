"""The summary of a session: what was asked for, and what really ran."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from accel.config import AccelConfig
from accel.methods.base import Method
from accel.pipelines.sites import PipelineFacts
from accel.runtime.recorder import ByBlock, Recorder, RunRecord

_SHOWN_RUNS = 4


class Summary:
    """A snapshot of what ran; `str()` for people, `to_dict()` and `to_json()` for programs."""

    def __init__(self, data: dict[str, Any], lines: list[str]) -> None:
        self._data = data
        self._lines = lines

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def __repr__(self) -> str:
        return f"<Summary of {len(self._data['runs'])} runs of {self._data['pipeline']}>"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: `pipeline`, `family`, `config` as asked for, `settings` as they held, what was `left_out` of it,
        and per run its size, its seconds, the methods' figures and counts, the blocks that each of them did what with,
        densities, fallbacks and notes.
        """
        return json.loads(self.to_json())

    def to_json(self, indent: int | None = 2) -> str:
        """The same as JSON text."""
        return json.dumps(self._data, indent=indent)


def summarize(
    pipe: Any,
    facts: PipelineFacts,
    config: AccelConfig,
    methods: list[Method],
    recorder: Recorder,
    left_out: Sequence[str] = (),
) -> Summary:
    """Reads the recorder and says it in words; `left_out` are remarks on optional methods that are not there."""
    denoiser = facts.denoisers[0].module
    data: dict[str, Any] = {
        "pipeline": type(pipe).__name__,
        "family": facts.family.name,
        "dtype": str(getattr(denoiser, "dtype", None)).removeprefix("torch."),
        "device": str(getattr(pipe, "_execution_device", "unknown")),
        "config": config.to_dict(),
        # As they hold for this pipeline, with what the configuration leaves open.
        "settings": {method.config.method: method.config.model_dump() for method in methods},
        "left_out": list(left_out),
        "runs": [_run(record, methods) for record in recorder.runs],
        "calls_outside_runs": recorder.outside_calls,
    }
    lines = [f"{data['pipeline']} ({facts.family.title}), {data['device']}, {data['dtype']}"]
    lines += [_settings(method) for method in methods] or ["no method is on: every run is plain"]
    lines += left_out
    shown = recorder.runs[-_SHOWN_RUNS:]
    if len(shown) < len(recorder.runs):
        lines.append(f"the last {len(shown)} of {len(recorder.runs)} runs (to_dict() has them all)")
    for record in shown:
        lines += _lines(record, methods)
    if not shown:
        lines.append("no run yet")
    if recorder.outside_calls:
        lines.append(
            f"outside of runs of this pipeline, the denoiser was called {_times(recorder.outside_calls)}, plainly"
        )
    return Summary(data, lines)


def _run(record: RunRecord, methods: list[Method]) -> dict[str, Any]:
    return {
        "steps": record.steps_seen,
        "planned_steps": record.planned_steps,
        "chunks": record.chunks_seen,
        "filling_calls": record.filling_calls,
        "grid": record.grid,
        "branches": record.branches,
        "seconds": record.seconds,
        "denoiser_seconds": record.denoiser_seconds,
        # Of the whole call, with text encoders and autoencoder; None where the pipeline does not tell.
        "call_seconds": record.call_seconds,
        "state": record.state,
        "methods": {method.config.method: method.report(record) for method in methods},
        # Calls of blocks, attentions or linears, by what the method did with them.
        "counts": {method.config.method: record.counts(method.config.method) for method in methods},
        # Which blocks, by denoiser, branch and step.
        "blocks": {method.config.method: record.what_ran(method.config.method) for method in methods},
        # Share of the key blocks that sparse calls attended exactly, likewise: a line for each block, in it the steps.
        "density": {
            method.config.method: _in_lines(found)
            for method in methods
            if (found := record.figure_by_block(method.config.method, "density"))
        },
        "fallbacks": [
            {"method": method, "reason": reason, "times": times} for (method, reason), times in record.fallbacks.items()
        ],
        "notes": record.notes,
    }


def _in_lines(tables: ByBlock) -> dict[str, dict[str, list[str]]]:
    """By denoiser and branch a line for each block, with a number for each step, as in "- - 0.125 0.1328"."""
    return {
        denoiser: {
            branch: [" ".join("-" if value is None else f"{value:.4g}" for value in row) for row in rows]
            for branch, rows in branches.items()
        }
        for denoiser, branches in tables.items()
    }


def _settings(method: Method) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in method.config.model_dump().items())
    return f"{method.config.keyword} {method.config.method}: {settings}"


def _lines(record: RunRecord, methods: list[Method]) -> list[str]:
    tokens = ""
    if record.grid is not None:
        time, height, width = record.grid
        tokens = f", {time * height * width:,} tokens ({time}×{height}×{width})"
    planned = record.planned_steps
    ends = {
        "running": f" of {planned} so far",
        "broken off": f" of {planned} (the run was cut short)",
        "unseen": " (the denoiser was not called through Accel)",
        "finished": "" if record.steps_seen == planned else f" ({planned} were planned)",
    }
    branches = " and ".join(record.branches) or "no call"
    steps = f"{_count(record.steps_seen, 'step')}{ends[record.state]}"
    if record.planned is not None:
        steps += f" in {_count(record.chunks_seen, 'chunk')} and {_count(record.filling_calls, 'call')} between them"
        tokens += " in the first" if tokens else ""
    lines = [f"run {record.index + 1}: {steps}, {branches}{tokens}"]
    lines += [f"  {method.config.method}: {method.describe(record)}" for method in methods]
    lines += [f"  {method} fell back {_times(times)}: {reason}" for (method, reason), times in record.fallbacks.items()]
    lines += [f"  note: {note}" for note in record.notes]
    whole = "" if record.call_seconds is None else f", {record.call_seconds:.2f} s in all"
    lines.append(f"  {record.denoiser_seconds:.2f} s in the denoiser, {record.seconds:.2f} s in the loop{whole}")
    return lines


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
