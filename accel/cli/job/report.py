"""How the lines of a job ended, and the report on all of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import typer

from accel.cli.exits import FAILED, RunFailed, complain
from accel.cli.job.plan import Item, Plan
from accel.cli.printing import Format, emit, say
from accel.config import AccelConfig
from accel.errors import AccelError
from accel.reporting import side_file

State = Literal["made", "there before", "failed", "not begun"]
_STATES: tuple[State, ...] = ("made", "there before", "failed", "not begun")


@dataclass(frozen=True)
class Outcome:
    """How one line ended: with its seconds if it was made, with the reason if it was not."""

    number: int
    state: State
    seconds: float | None = None
    why: str = ""

    @property
    def missing(self) -> bool:
        """Whether the line has no output."""
        return self.state in ("failed", "not begun")


def leave(said: Sequence[Sequence[Outcome]]) -> None:
    """Ends a process that does not report, with the exit code of the one that does."""
    if any(outcome.missing for outcomes in said for outcome in outcomes):
        raise typer.Exit(FAILED)


def conclude(
    plan: Plan,
    said: Sequence[Sequence[Outcome]],
    *,
    form: Format,
    config: AccelConfig,
    seconds: Mapping[str, float],
) -> None:
    """Reports on all lines, by all processes and of all starts; raises `RunFailed` where some are missing."""
    by_line = {outcome.number: outcome for outcomes in said for outcome in outcomes}
    ordered = [(item, by_line[item.number]) for item in plan.items]
    number = Counter(outcome.state for _, outcome in ordered)
    everything = totals(_read(plan, item) for item, outcome in ordered if not outcome.missing)
    counted = ", ".join(f"{number[state]:,} {state}" for state in _STATES if number[state])
    say(f"{len(ordered):,} lines of {plan.file} in {plan.folder}{os.sep}: {counted}", form)
    for line in _lines(everything):
        say(f"  {line}", form)
    say(f"{seconds['all']:.1f} s for this start, {seconds['load']:.1f} s of it to load", form)
    if form is Format.JSON:
        emit(
            {
                "prompts": os.path.abspath(plan.file),
                "folder": os.path.abspath(plan.folder),
                "processes": len(said),
                "acceleration": config.to_dict(),
                "lines": [
                    {
                        "line": item.number,
                        "prompt": item.request.prompt,
                        "state": outcome.state,
                        "output": None if outcome.missing else os.path.abspath(item.media),
                        "side_file": None if outcome.missing else os.path.abspath(item.side),
                        "seconds": outcome.seconds,
                        "error": outcome.why or None,
                    }
                    for item, outcome in ordered
                ],
                "count": {state: number[state] for state in _STATES},
                "totals": everything,
                "seconds": dict(seconds),
            }
        )
    failed = [(item, outcome) for item, outcome in ordered if outcome.state == "failed"]
    for item, outcome in failed:
        complain(f"{plan.blame(item)}: {outcome.why}")
    if failed or number["not begun"]:
        missing = len(failed) + number["not begun"]
        stopped = f", {number['not begun']:,} of them because nothing could be written" if number["not begun"] else ""
        raise RunFailed(
            f"{missing:,} of {len(ordered):,} lines are not made{stopped}; the same command tries them again"
        )


def totals(side_files: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the side files of many runs say together: seconds, and for each method how many calls it did what with."""
    runs, seconds = 0, Counter[str]()
    methods: dict[str, Counter[str]] = {}
    fallbacks: Counter[tuple[str, str]] = Counter()
    notes: Counter[str] = Counter()
    for data in side_files:
        runs += 1
        seconds.update({name: data["seconds"].get(name) or 0.0 for name in ("call", "loop")})
        for run in (data.get("summary") or {}).get("runs", []):
            for method, counts in run["counts"].items():
                methods.setdefault(method, Counter()).update(counts)
            fallbacks.update({(each["method"], each["reason"]): each["times"] for each in run["fallbacks"]})
            notes.update(run["notes"])
    return {
        "runs": runs,
        "seconds": dict(seconds),
        "methods": {method: dict(counts) for method, counts in methods.items()},
        "fallbacks": [{"method": m, "reason": why, "times": times} for (m, why), times in fallbacks.items()],
        "notes": [{"text": text, "runs": times} for text, times in notes.items()],
    }


def _lines(everything: Mapping[str, Any]) -> list[str]:
    """The totals for a person."""
    runs, call = everything["runs"], everything["seconds"].get("call", 0.0)
    found = []
    for method, counts in everything["methods"].items():
        calls = sum(counts.values())
        parts = [f"{count:,} {what} ({count / calls:.1%})" for what, count in counts.items()]
        found.append(f"{method}: {', '.join(parts) or 'nothing'} of {calls:,} calls")
    found += [
        f"{each['method']} fell back {each['times']:,} times: {each['reason']}" for each in everything["fallbacks"]
    ]
    found += [f"note in {each['runs']:,} of {runs:,} runs: {each['text']}" for each in everything["notes"]]
    if runs:
        found.append(f"{call:.1f} s to generate all {runs:,}, {call / runs:.1f} s each")
    return found


def _read(plan: Plan, item: Item) -> dict[str, Any]:
    try:
        return side_file.read(item.side)
    except AccelError as error:
        raise RunFailed(f"{plan.blame(item)} was made, and is gone: {error}") from error
