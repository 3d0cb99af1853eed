"""Several processes at one benchmark: which of them makes a prompt's clips or a file, and how many ran side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from accel.cli.job.claims import Claims
from accel.measure.cells import Cell, Place, Store


@contextmanager
def turn(claims: Claims, store: Store, place: Place, *, waits: bool) -> Iterator[bool]:
    """Whether this process alone makes the clips of a place until the block ends; the store knows the others' by then.

    Where another process is at them, `waits` until that one is done or has ended.
    """
    name = claimed(store.folder.name, place)
    with ExitStack() as held:
        mine = held.enter_context(claims.claim(name))
        if not mine and waits:
            print(f"waiting for the process that makes prompt {place.seed}", file=sys.stderr)
            mine = held.enter_context(claims.claim(name, wait=True))
        if mine:
            store.refresh()
        yield mine


def claimed(store: str, place: Place) -> str:
    """What a process claims that makes the clips of a place, of the store of that name."""
    return f"{store} {place.seed} {place.prompt}"


def made_once(folder: Path, makers: Mapping[Path, Callable[[], None]]) -> None:
    """Makes the files of a folder that are not there, each in one of the processes that come to them.

    What another process is at is left to it, and waited for behind all others.
    """
    with closing(Claims(folder)) as claims:
        for waits in (False, True):
            for path, make in makers.items():
                if path.exists():
                    continue
                with claims.claim(path.name, wait=waits) as mine:
                    if mine and not path.exists():
                        make()


def side_by_side(cells: Iterable[Cell]) -> int:
    """The most runs that were under way at once, which is the number of processes: each makes one at a time."""
    spans = [(cell.figures["began"], cell.figures["seconds"]["total"]) for cell in cells if cell.error is None]
    # An end before a beginning at the same time.
    events = sorted([(began, 1) for began, _ in spans] + [(began + seconds, -1) for began, seconds in spans])
    most = running = 0
    for _, change in events:
        running += change
        most = max(most, running)
    return most
