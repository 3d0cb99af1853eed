"""What is said while a job runs: which line, how many are left, for how long. One process of a machine speaks."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel.cli.durations import count, duration
from accel.cli.exits import note
from accel.cli.job.plan import Item, Plan
from accel.cli.job.processes import Processes
from accel.cli.job.report import Outcome
from accel.cli.job.state import Found, Standing, last_error
from accel.cli.printing import Format, say

_MOST_SHOWN = 5
_NUMBERED = re.compile(r"\d{4,}(-.*)?\.json", re.DOTALL)


class Progress:
    """The progress over all processes, as the folder that they share shows it."""

    def __init__(self, plan: Plan, processes: Processes, form: Format) -> None:
        self._plan = plan
        self._processes = processes
        self._form = form
        self._items = {item.number: item for item in plan.items}
        # The outputs that are not as asked, with the time of change of those that will be replaced.
        self._missing: dict[str, int | None] = {}
        self._settled = 0
        self._began = 0.0

    def say(self, text: str) -> None:
        """A line for a person, from one process of each machine."""
        if self._processes.local_main:
            say(text, self._form)

    def introduce(self, found: dict[int, Found]) -> None:
        """What there is to do, what is tried or made again, and what in the folder is of no line."""
        done = sum(each.standing is Standing.DONE for each in found.values())
        total, several = len(self._items), self._processes.count
        self.say(
            f"{self._plan.file}: {count(total, 'line')} into {self._plan.folder}{os.sep}, {done} done before, "
            f"{total - done} to make{f', by {several} processes' if several > 1 else ''}"
        )
        self.made_again({n: each.why for n, each in found.items() if each.standing is Standing.OTHER})
        failed = {n: why for n, item in self._items.items() if (why := last_error(item)) is not None}
        again = [n for n in failed if found[n].standing is not Standing.DONE]
        self._list([f"line {number} failed last time and is tried again: {failed[number]}" for number in again])
        strays = self._strays()
        if strays and self._processes.main:
            note(
                f"{count(len(strays), 'result')} in {self._plan.folder} of no line that {self._plan.file} has now, "
                f"such as {strays[0]}; left as {'it is' if len(strays) == 1 else 'they are'}"
            )

    def made_again(self, why: Mapping[int, str]) -> None:
        """Names the lines in whose place something else is, with the reason."""
        self._list([f"line {number} is made again: {reason}" for number, reason in why.items()])

    def begin(self, found: dict[int, Found]) -> None:
        """Starts the clock."""
        for number, item in self._items.items():
            if found[number].standing is not Standing.DONE:
                self._missing[item.media.name] = _changed(item.media)
        self._began = time.perf_counter()

    def start(self, item: Item, pipe: Any) -> None:
        """A line begins."""
        hidden = self._form is Format.JSON or not sys.stderr.isatty() or not self._processes.local_main
        pipe.set_progress_bar_config(disable=hidden, desc=f"line {item.number}")

    def end(self, outcome: Outcome) -> None:
        """A line has ended."""
        item, total = self._items[outcome.number], len(self._items)
        if outcome.state == "not begun" or item.media.name not in self._missing or not self._processes.local_main:
            return
        self._settled += 1
        settled = self._settled if self._processes.count == 1 else max(self._settled, self._made())
        left = len(self._missing) - settled
        what = f"{item.media.name} is there by now"
        if outcome.state == "failed":
            what = f"failed: {outcome.why}"
        elif outcome.seconds is not None:
            what = f"{item.media.name}, {outcome.seconds:.1f} s"
        rest = "none left"
        if left > 0:
            rest = f"{left} left, about {duration((time.perf_counter() - self._began) / settled * left)}"
        self.say(f"{total - left} of {total}: line {item.number}: {what}; {rest}")

    def wait(self) -> None:
        """This process is done."""
        if self._processes.count > 1:
            self.say("waiting for the other processes")

    def interrupted(self) -> None:
        """Says that nothing is lost."""
        if self._processes.local_main:
            note(f"{count(self._settled, 'line')} more settled in this start; the same command goes on from here")

    def _made(self) -> int:
        """How many of the missing outputs are there by now, whoever made them."""
        there = set(os.listdir(self._plan.folder))
        folder = self._plan.folder
        # Of those that are being replaced, the old one may have gone since, and the new one not have come.
        return sum(
            name in there and (before is None or _changed(folder / name) not in (None, before))
            for name, before in self._missing.items()
        )

    def _list(self, lines: list[str]) -> None:
        for line in lines[:_MOST_SHOWN]:
            self.say(line)
        if len(lines) > _MOST_SHOWN:
            self.say(f"and {len(lines) - _MOST_SHOWN} more")

    def _strays(self) -> list[str]:
        """Side files with the names that lines get by themselves, of which there is no line."""
        if not self._plan.folder.is_dir():
            return []
        known = {item.side.name for item in self._plan.items}
        return sorted(n for n in os.listdir(self._plan.folder) if n not in known and _NUMBERED.fullmatch(n))


def _changed(file: Path) -> int | None:
    """When a file was changed; None where there is none."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None
