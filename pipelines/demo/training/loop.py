"""What both trainings share: processes, schedule, averaged weights, checkpoints, a loop that can be cut off.

The data of a step is a function of the step and the process alone, so a training that goes on from a
checkpoint sees what it would have seen.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Workers:
    """The processes that train together: one for each GPU, or one for each core, as `torchrun` starts them."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls) -> "Workers":
        """This process's place, from the environment that torchrun sets; alone without it."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        if world > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(rank, world, device)

    def average(self, parameters: Iterable[nn.Parameter], *more: Tensor) -> None:
        """Replace gradients, and the further tensors, by their means over the processes."""
        if self.world == 1:
            return
        tensors = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters] + list(more)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.world > 1:
            dist.barrier()

    def agree(self, stop: bool) -> bool:
        """Whether any of the processes wants to stop: they must leave the loop at the same step."""
        if self.world == 1:
            return stop
        flag = torch.tensor(float(stop), device=self.device)
        dist.all_reduce(flag)
        return bool(flag.item())

    def randomness(self, seed: int, step: int) -> tuple[random.Random, torch.Generator]:
        """Fresh generators for one step of this process."""
        rng = random.Random(f"{seed}/{step}/{self.rank}")
        return rng, torch.Generator(self.device).manual_seed(rng.getrandbits(62))


def learning_rate(step: int, steps: int, warmup: int = 50, decay: float = 0.3) -> float:
    """The share of the full rate: a linear warm-up, a constant part, a linear decay over the last `decay`."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))


class Average:
    """The exponential mean of parameters over the steps, which is what gets shipped."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.values = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        # Over the first steps a plain mean would hold too much of the start.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the mean and the parameters; a second call undoes it."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)


class Trainer:
    """A model with its optimizers, its averaged weights and its checkpoint, from which it goes on if there is one."""

    def __init__(
        self, model: nn.Module, optimizers: list[torch.optim.Optimizer], decay: float, path: Path, workers: Workers
    ) -> None:
        self.model, self.path, self.workers = model, path, workers
        self.parameters = list(model.parameters())
        self.average = Average(self.parameters, decay)
        self.first = 0
        self._optimizers = optimizers
        self._full_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        if path.exists():
            state = torch.load(path, map_location=workers.device, weights_only=True)
            model.load_state_dict(state["model"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.average.values = state["average"]
            self.first = state["step"]

    def update(self, loss: Tensor, number: int, steps: int) -> None:
        """Makes step `number` of `steps` from this process's loss."""
        loss.backward()
        self.workers.average(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, rate in zip(self._optimizers, self._full_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * learning_rate(number, steps)
            optimizer.step()
            optimizer.zero_grad()
        self.average.update(number)

    def save(self, done: int) -> None:
        """Written beside and moved, so that a cut never leaves half a file."""
        state: dict[str, Any] = {
            "step": done,
            "model": self.model.state_dict(),
            "average": self.average.values,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        torch.save(state, beside)
        os.replace(beside, self.path)


class Cut:
    """Notes SIGTERM and SIGINT, and the end of a time budget, for the loop to end after its current step."""

    def __init__(self, minutes: float) -> None:
        self.deadline = time.monotonic() + 60 * minutes
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __bool__(self) -> bool:
        return self.asked or time.monotonic() >= self.deadline


def run_steps(
    workers: Workers,
    *,
    first: int,
    steps: int,
    minutes: float,
    step: Callable[[int], dict[str, float]],
    save: Callable[[int], None],
    print_every: int = 25,
    save_every_seconds: float = 120.0,
) -> bool:
    """Runs `step` from `first` to `steps`, prints running means, saves now and then and at the end.

    Args:
        minutes: the most that it may take; then it saves and returns.
        step: one training step, given its number; returns figures to print.
        save: writes a checkpoint, given the number of steps done; called on the first process only.

    Returns:
        Whether all steps are done.
    """
    cut, begun, saved = Cut(minutes), time.monotonic(), time.monotonic()
    means: dict[str, float] = {}
    done = first
    while done < steps and not workers.agree(bool(cut)):
        figures = step(done)
        for name, value in figures.items():
            means[name] = value if name not in means else 0.95 * means[name] + 0.05 * value
        done += 1
        if workers.rank == 0:
            if done % print_every == 0 or done - first in (2, 10):
                rate = (time.monotonic() - begun) / (done - first)
                text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
                print(f"step {done}/{steps} {rate:.3f} s/step cpu {time.process_time():.0f} s {text}", flush=True)
            if time.monotonic() - saved > save_every_seconds:
                save(done)
                saved = time.monotonic()
    if workers.rank == 0:
        save(done)
    return done >= steps
