"""What diffusers' context parallelism does to a transformer: which processes share it, and which part a block is given.

`enable_parallelism` of a model splits the tokens over the processes of a mesh, once before the first block and back
behind the last; in between each process has some tokens of the image and some of the text, and only the attention
exchanges them. Hooks of diffusers do the splitting, in front of a module's forward and behind whatever stands in front
of its call, so that a first block may be called with all tokens and give back a part of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

# What diffusers calls the hooks that split.
_SPLITS = "cp_input---"


@dataclass(frozen=True)
class Ranks:
    """Processes that compute one thing together.

    Attributes:
        group: the process group; collectives are called by all of them, in the same order.
        size: how many they are.
        rank: which of them this process is.
    """

    group: Any
    size: int
    rank: int

    @classmethod
    def of(cls, mesh: Any) -> Ranks:
        """The processes of a device mesh of one dimension."""
        group = mesh.get_group()
        return cls(group, dist.get_world_size(group), dist.get_rank(group))

    def gathered(self, x: Tensor) -> Tensor:
        """(size, ...): the tensors x of all ranks, which are of one shape; the same bits everywhere."""
        found = x.new_empty((self.size, *x.shape))
        dist.all_gather(list(found.unbind(0)), x.contiguous(), group=self.group)
        return found

    def exchanged(self, x: Tensor, sends: list[int], receives: list[int]) -> Tensor:
        """What all ranks have for this one, behind each other: each gets the next of the rows of x, as many as `sends`
        says, and has as many for this one as `receives` says."""
        found = x.new_empty((sum(receives), *x.shape[1:]))
        dist.all_to_all_single(found, x.contiguous(), receives, sends, group=self.group)
        return found


def context_parallel(parallel: Any) -> Any:
    """The configuration of context parallelism in a parallel configuration of diffusers, or None."""
    return getattr(parallel, "context_parallel_config", None)


def sharing_tokens(module: nn.Module) -> Ranks | None:
    """The processes that have the tokens of a transformer among them, or None where this process has all."""
    config = context_parallel(getattr(module, "_parallel_config", None))
    return None if config is None else Ranks.of(config._flattened_mesh)


def sharing_heads(parallel: Any) -> Ranks:
    """The processes that have the heads of an attention among them while it is computed."""
    return Ranks.of(context_parallel(parallel)._ulysses_mesh)


def given(module: nn.Module, name: str, value: Any) -> Any:
    """What the forward of a module is given for a parameter when the module is called with a value.

    That is the part of this process where the context parallelism of diffusers splits the parameter in front of it.
    """
    registry = vars(module).get("_diffusers_hook")
    if registry is None or not isinstance(value, Tensor):
        return value
    for hook_name, hook in registry.hooks.items():
        if hook_name.startswith(_SPLITS):
            split = hook.metadata.get(name)
            if split is not None and not split.split_output:
                value = hook._prepare_cp_input(value, split)
    return value


def part_of(number: int, ranks: Ranks) -> int:
    """How many of so many tokens this process has: the first processes have those that are over."""
    return number // ranks.size + (ranks.rank < number % ranks.size)


def why_not_by_heads(parallel: Any, heads: int) -> str | None:
    """Why attention of so many heads cannot be computed for some heads on each process, and what to do; or None."""
    config = context_parallel(parallel)
    if config.ring_degree > 1:
        return "ring attention shows no process all of them: use ContextParallelConfig(ulysses_degree=...) instead"
    if heads % config.ulysses_degree:
        return f"its {heads} heads are not a multiple of ulysses_degree={config.ulysses_degree}: use one that divides"
    return None
