"""A pipeline of a few lines whose blocks are known functions, for tests that compare with the analytic result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from accel.pipelines.facts import BlockStack, Family, Guidance, TokenGrid
from accel.pipelines.sites import BlockSite, Denoiser, PipelineFacts

Function = Callable[[torch.Tensor], torch.Tensor]


class ToyBlock(nn.Module):
    """Applies a function to its one stream."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.calls = 0

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.function(hidden_states)


class ToyDenoiser(nn.Module):
    """Runs its blocks; `between` may change the hidden states after each block, as a parent with hints does."""

    def __init__(
        self, functions: Sequence[Function], between: Callable[[int, torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ToyBlock(function) for function in functions)
        self.between = between

    def forward(self, hidden_states: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        for index, block in enumerate(self.blocks):
            hidden_states = block(hidden_states)
            if self.between is not None:
                hidden_states = self.between(index, hidden_states)
        return hidden_states


class ToyPipeline:
    """Calls the denoiser once per branch and step on `inputs(step)`, and returns all outputs by (step, branch)."""

    def __init__(self, transformer: ToyDenoiser, order: int = 1) -> None:
        self.transformer = transformer
        self.scheduler = SimpleNamespace(order=order)

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        return tqdm(iterable, total=total, disable=True)

    def __call__(
        self, inputs: Callable[[int], torch.Tensor], steps: int = 8, branches: Sequence[str] = ("cond", "uncond")
    ) -> dict[tuple[int, str], torch.Tensor]:
        outputs = {}
        with self.progress_bar(total=steps) as bar:
            for step in range(steps):
                timestep = torch.tensor(1000.0 - step)
                # Both calls of a step are given the same timestep object, as most pipelines do.
                for position, branch in enumerate(branches):
                    hidden = inputs(step) * (position + 1)
                    outputs[step, branch] = self.transformer(hidden_states=hidden, timestep=timestep)
                bar.update()
        return outputs


def toy_facts(pipe: ToyPipeline) -> PipelineFacts:
    """The facts of a toy pipeline: two unnamed separate calls in each step."""
    stack = BlockStack("blocks", ("ToyBlock",), ("hidden_states",), ())
    guidance = Guidance("separate", ("cond", "uncond"), named=False)
    family = Family(
        "toy", "Toy", ("ToyDenoiser",), {"ToyPipeline": guidance}, (stack,), "none", TokenGrid("BNC", ids="ids")
    )
    sites = tuple(
        BlockSite("transformer", index, f"blocks.{index}", block, stack, ("hidden_states",), index)
        for index, block in enumerate(pipe.transformer.blocks)
    )
    return PipelineFacts(family, guidance, (Denoiser("transformer", pipe.transformer, sites),))
