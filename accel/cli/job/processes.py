"""The processes that share a job, as `accelerate launch` or `torchrun` start them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import typer

from accel.cli.exits import REFUSED, RunFailed, one_line
from accel.errors import AccelError

# A process that is done waits for those that are not, however long their lines take.
_PATIENCE = timedelta(days=365)


@dataclass(frozen=True)
class Processes:
    """This process among those of the job."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> Self:
        """As RANK, WORLD_SIZE and LOCAL_RANK tell; alone without them."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        values = {name: os.environ.get(name, "") for name in names}
        if values["WORLD_SIZE"] in ("", "1"):
            return cls()
        wrong = next((name for name, value in values.items() if not value.isdecimal()), None)
        if wrong is not None:
            raise AccelError(
                f"{wrong} is {values[wrong]!r}, which is no whole number; start with accelerate launch or torchrun, "
                "which set RANK, WORLD_SIZE and LOCAL_RANK, or unset WORLD_SIZE"
            )
        found = cls(int(values["RANK"]), int(values["WORLD_SIZE"]), int(values["LOCAL_RANK"]))
        if found.rank >= found.count:
            raise AccelError(f"RANK is {found.rank}, but WORLD_SIZE {found.count} has 0 to {found.count - 1} only")
        return found

    @property
    def main(self) -> bool:
        """Whether this is the one that reports on the whole job."""
        return self.rank == 0

    @property
    def local_main(self) -> bool:
        """Whether this is the one of its machine that shows the progress."""
        return self.local_rank == 0

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """What is refused is refused by all alike, and said by one process of each machine."""
        try:
            yield
        except AccelError as error:
            if self.local_main:
                raise
            raise typer.Exit(REFUSED) from error

    def device(self, wanted: str) -> str:
        """This process's own device of the kind that is wanted."""
        import torch

        device = torch.device(wanted)
        if self.count == 1 or device.type == "cpu":
            return wanted
        if device.index is not None:
            raise AccelError(f"--device {wanted} would put {self.count} processes on one device; use {device.type}")
        there = torch.accelerator.device_count()
        if self.local_rank >= there:
            raise AccelError(
                f"process {self.local_rank + 1} of this machine has no {device.type} device of its own: there are "
                f"{there}; start no more processes than that on a machine"
            )
        return f"{device.type}:{self.local_rank}"

    def join(self, device: str) -> Group:
        """Meets the others, which takes until all of them are here."""
        return Group(self, on_cpu=device == "cpu")


def alone(what: str) -> None:
    """Refuses several processes for what would be done, and written to the same files, by each of them."""
    processes = Processes.of_environment()
    if processes.count == 1:
        return
    with processes.one_voice():
        raise AccelError(
            f"{what} works in one process, and {processes.count} were started: start it without the launcher, or share "
            "many prompts among the processes with accel generate --prompts FILE"
        )


class Group:
    """All processes of the job, once they have met; they do not speak before all are done."""

    def __init__(self, processes: Processes, *, on_cpu: bool) -> None:
        self._count = processes.count
        self._state: Any = None
        if self._count == 1:
            return
        import torch.distributed
        from accelerate import PartialState

        try:
            # Words between hosts go over gloo: nothing of the job is on the devices, which stay free for the model.
            self._state = PartialState(cpu=on_cpu, backend="gloo")
            self._group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise RunFailed(f"the {self._count} processes did not find each other: {one_line(str(error))}") from error

    def gather(self, of_this: Any) -> list[Any]:
        """What every process has to say, by rank; waits until all of them are done."""
        if self._count == 1:
            return [of_this]
        import torch.distributed

        found: list[Any] = [None] * self._count
        try:
            torch.distributed.all_gather_object(found, of_this, group=self._group)
        except RuntimeError as error:
            raise RunFailed("another process of this job ended before its lines were done; start it again") from error
        self._state.destroy_process_group()
        return found
