"""From facts to the modules of one pipeline: its denoisers and their blocks, checked against the facts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from accel.errors import AccelError
from accel.pipelines.checking import (
    DIFFERS,
    check_arguments,
    check_block_arguments,
    check_class,
    check_depths,
    check_marks,
    config_value,
    parameters_of,
)
from accel.pipelines.context_parallel import given, sharing_tokens
from accel.pipelines.facts import AttentionSite, BlockStack, Chunks, Family, Guidance, TokenGrid
from accel.pipelines.families import families
from accel.pipelines.guiders import guided

# What blocks call the text, where it is a stream of theirs.
TEXT_STREAM = "encoder_hidden_states"


@dataclass(frozen=True)
class BlockSite:
    """One transformer block: `index` counts through all stacks of its denoiser, those of the main path first.

    `depth` is its place on the main path, or the place of the block there that it runs next to. `attention` are those
    of the stack's attentions that the block has. `ends_text`: it returns None for the text.
    """

    denoiser: str
    index: int
    path: str
    module: nn.Module
    stack: BlockStack
    parameters: tuple[str, ...]
    depth: int
    attention: tuple[AttentionSite, ...] = ()
    ends_text: bool = False

    def streams(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """The streams among a call's arguments, each (batch, tokens, channels), in the order of the outputs.

        Under context parallelism they are the part that this process computes, as in the outputs.
        """
        return tuple(given(self.module, name, self.argument(name, args, kwargs)) for name in self.stack.streams)

    def argument(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value that a call gives to the parameter or stream `name`, or None."""
        return _argument(self.stack.named.get(name, name), self.parameters, args, kwargs)

    def with_argument(
        self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with another value for the parameter or stream `name`, which the call gives."""
        name = self.stack.named.get(name, name)
        if name in kwargs:
            return args, {**kwargs, name: value}
        place = self.parameters.index(name)
        return (*args[:place], value, *args[place + 1 :]), kwargs

    def unpack(self, output: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The streams of what the block returned; one that ends there is as the block was given it.

        Raises `AccelError` where that is not in the form of `pack`, of which nothing can be told without a call.
        """
        ahead = self.stack.ahead
        returned = output[ahead:] if isinstance(output, tuple) else (output,)
        if len(returned) != len(given) or isinstance(output, tuple) != (len(given) + ahead > 1):
            what = f"a tuple of {len(returned)}" if isinstance(output, tuple) else f"one {type(output).__name__}"
            raise AccelError(
                f"{self.denoiser}.{self.path} returned {what}, and the facts of its family expect "
                f"{' and '.join(self.stack.streams)}: {DIFFERS}"
            )
        return tuple(old if new is None else new for new, old in zip(returned, given, strict=True))

    def pack(self, streams: tuple[torch.Tensor, ...]) -> Any:
        """Streams in the form in which the block returns them."""
        if self.ends_text:
            pairs = zip(self.stack.streams, streams, strict=True)
            return tuple(None if name == TEXT_STREAM else stream for name, stream in pairs)
        return streams if len(self.stack.streams) > 1 else streams[0]


@dataclass(frozen=True)
class Denoiser:
    """A transformer of the pipeline that is called once or more in each step.

    `blocks` are those of the main path, in the order in which they run; `beside` are others on the same tokens.
    `named`: as the family's.
    """

    name: str
    module: nn.Module
    blocks: tuple[BlockSite, ...]
    beside: tuple[BlockSite, ...] = ()
    named: dict[str, str] = field(default_factory=dict)

    def argument(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value that a call gives to the argument `name`, or None."""
        return _argument(self.named.get(name, name), parameters_of(type(self.module)), args, kwargs)


@dataclass(frozen=True)
class PipelineFacts:
    """A pipeline with what the facts say about it."""

    family: Family
    guidance: Guidance
    denoisers: tuple[Denoiser, ...]


def inspect_pipeline(pipe: Any) -> PipelineFacts:
    """Finds the pipeline's family and its blocks.

    Raises `AccelError` when the family is not known, or when the modules differ from the family's facts.
    """
    family, guidance = family_of(type(pipe), getattr(pipe, "transformer", None))
    check_marks(pipe, family)
    present: dict[str, Any] = {}
    for name in family.denoisers:
        module = getattr(pipe, name, None)
        # One model may be both experts; it is one denoiser then, under its first name.
        if module is not None and not any(module is other for other in present.values()):
            present[name] = module
    if not present:
        raise AccelError(f"{type(pipe).__name__} has no {' or '.join(family.denoisers)}: load the pipeline with it")
    for name, module in present.items():
        check_class(f"pipe.{name}", module, family)
    guidance = guided(pipe, family, guidance, next(iter(present.values())))
    denoisers = tuple(_denoiser(name, module, family) for name, module in present.items())
    return PipelineFacts(family, guidance, denoisers)


def guides(pipe: Any) -> bool:
    """Whether the run that is on does guidance where its pipeline's class can; True where the pipeline does not tell.

    As with `guidance_scale=1`, a pipeline that calls once for each branch then makes one call in each step.
    """
    return bool(getattr(pipe, "do_classifier_free_guidance", True))


def check_guider(pipe: Any, facts: PipelineFacts) -> None:
    """Raises `AccelError` where the pipeline has got a guider since that cannot be followed or has other branches."""
    if facts.family.guiders:
        _, guidance = family_of(type(pipe))
        if guided(pipe, facts.family, guidance, facts.denoisers[0].module) != facts.guidance:
            raise AccelError(
                f"pipe.guider was replaced after enable by a {type(pipe.guider).__name__}, which has other branches: "
                "call accel.disable(pipe) and enable again"
            )


def inspect_denoiser(module: nn.Module) -> tuple[Family, Denoiser]:
    """The family of a transformer without its pipeline, and its blocks.

    Raises `AccelError` when no family has it, or when the module differs from the family's facts.
    """
    name = type(module).__name__
    for family in families().values():
        if name in family.transformers:
            return family, _denoiser(name, module, family)
    raise AccelError(f"{name} is a transformer of no family that Accel knows ({_known()})")


def token_grid(grid: TokenGrid, denoiser: Denoiser, args: tuple, kwargs: dict) -> tuple[int, int, int] | None:
    """Tokens along (time, height, width) of one call of the denoiser, or None when the call does not tell."""
    hidden_states = denoiser.argument("hidden_states", args, kwargs)
    if isinstance(hidden_states, list):
        return _grid_of_list(grid, denoiser, hidden_states)
    if not isinstance(hidden_states, torch.Tensor):
        return None
    if grid.ids is not None:
        ids = denoiser.argument(grid.ids, args, kwargs)
        if not isinstance(ids, torch.Tensor):
            return None
        rows = ids.reshape(-1, ids.shape[-1])
        images, height, width = (int(n) + 1 for n in rows.amax(0).tolist()[:3])
        return (1, height, width) if images == 1 and ids.shape[-2] == height * width else None
    if grid.shapes is not None:
        samples = denoiser.argument(grid.shapes, args, kwargs) or ()
        # A sample of one image may have its shape alone.
        each = (image for sample in samples for image in ([sample] if isinstance(sample, tuple) else sample))
        shapes = {(int(time), int(height), int(width)) for time, height, width in each}
        one = shapes.pop() if len(shapes) == 1 else (0, 0, 0)
        return one if math.prod(one) == hidden_states.shape[1] else None
    if grid.sizes is not None:
        told = [denoiser.argument(name, args, kwargs) for name in grid.sizes]
        # A call that gives coordinates of every token gives no sizes.
        return None if None in told else (int(told[0]), int(told[1]), int(told[2]))
    return _grid_of_shape(grid, denoiser, tuple(hidden_states.shape))


def _grid_of_list(grid: TokenGrid, denoiser: Denoiser, samples: list[Any]) -> tuple[int, int, int] | None:
    shapes = {tuple(sample.shape) if isinstance(sample, torch.Tensor) else None for sample in samples}
    shape = shapes.pop() if len(shapes) == 1 else None
    return None if shape is None else _grid_of_shape(grid, denoiser, (len(samples), *shape))


def _grid_of_shape(grid: TokenGrid, denoiser: Denoiser, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    if len(shape) != len(grid.layout):
        return None
    sizes = dict(zip(grid.layout, shape, strict=True))
    config = denoiser.module.config
    patches = [config_value(config, name) for name in grid.patch]
    time, height, width = (-(-sizes.get(a, 1) // p) for a, p in zip("THW", patches, strict=True))
    return time, height, width


def chunk_place(chunks: Chunks | None, denoiser: Denoiser, args: tuple, kwargs: dict) -> tuple[int, bool]:
    """How many chunks come before a call of the denoiser, and whether it only keeps what is done and is no step."""
    told = None if chunks is None else denoiser.argument(chunks.argument, args, kwargs)
    if chunks is None or told is None:
        return 0, False
    return int(told[chunks.done]), bool(told[chunks.filling])


def told_branch(guidance: Guidance, denoiser: Denoiser, args: tuple, kwargs: dict) -> str | None:
    """The guidance branch of a call of the denoiser, where its arguments make it one of its own."""
    told = (name for given, name in guidance.told_by.items() if denoiser.argument(given, args, kwargs) is not None)
    return next(told, None)


def family_of(pipeline: type, transformer: nn.Module | None = None) -> tuple[Family, Guidance]:
    """The family of a pipeline's class, and how this class guides. Raises `AccelError` when the family is not known.

    `transformer` is that of the pipeline, if there is one already.
    """
    known = families().values()
    # A user's subclass of a known pipeline behaves as its base does.
    for base in pipeline.__mro__:
        for family in known:
            if base.__name__ in family.pipelines:
                return family, family.pipelines[base.__name__]
    driven = _driven(pipeline) if transformer is None else {type(transformer).__name__}
    for family in known:
        for name in sorted(driven.intersection(family.transformers)):
            raise AccelError(
                f"{pipeline.__name__} drives a {name} of the family {family.name}, which Accel knows under "
                f"{', '.join(family.pipelines)}: how this one guides, and a test of it, are a line each "
                f"(pipelines/families/{family.name}.py, see CONTRIBUTING.md)"
            )
    raise AccelError(
        f"{pipeline.__name__} is of no family that Accel knows ({_known()}); "
        "a family is added with one file in pipelines/families (see CONTRIBUTING.md)"
    )


def _driven(pipeline: type) -> set[str]:
    """Names of the classes of which a pipeline's class takes its transformer."""
    constructor = getattr(pipeline, "__init__", None)
    annotation = getattr(constructor, "__annotations__", {}).get("transformer", "")
    return set(re.findall(r"\w+", annotation.__name__ if isinstance(annotation, type) else str(annotation)))


def _known() -> str:
    return f"there are {', '.join(sorted(families()))}, and `accel list` names their pipelines"


def require_all_tokens(what: str, denoisers: Iterable[Denoiser]) -> None:
    """Raises `AccelError` where context parallelism spreads the tokens of a denoiser over processes."""
    for denoiser in denoisers:
        if sharing_tokens(denoiser.module) is not None:
            raise AccelError(
                f"{what} needs all tokens in one process, and context parallelism spreads those of "
                f"pipe.{denoiser.name} over several: do it on a pipeline without it"
            )


def _denoiser(name: str, module: nn.Module, family: Family) -> Denoiser:
    check_arguments(module, family)
    blocks = _blocks(name, module, family, family.stacks)
    check_block_arguments(blocks, family)
    beside = _blocks(name, module, family, family.beside.get(type(module).__name__, ()), first=len(blocks))
    return Denoiser(name, module, blocks, beside, family.named)


def _blocks(
    name: str, module: Any, family: Family, stacks: tuple[BlockStack, ...], first: int = 0
) -> tuple[BlockSite, ...]:
    sites: list[BlockSite] = []
    for stack in stacks:
        blocks = getattr(module, stack.path, None)
        if not isinstance(blocks, nn.ModuleList):
            raise AccelError(
                f"{type(module).__name__} has no module list `{stack.path}`, which the facts of the family "
                f"{family.name} name: {DIFFERS}"
            )
        check_depths(module, stack, len(blocks), family)
        for position, block in enumerate(blocks):
            parameters = parameters_of(type(block))
            streams = [stack.named.get(stream, stream) for stream in stack.streams]
            missing = [stream for stream in streams if stream not in parameters]
            if type(block).__name__ not in stack.blocks or missing:
                found = f"{type(block).__name__}({', '.join(parameters)})"
                raise AccelError(
                    f"{name}.{stack.path}.{position} is {found}; the facts of the family {family.name} expect "
                    f"{' or '.join(stack.blocks)} with {', '.join(streams)}"
                )
            index, path = first + len(sites), f"{stack.path}.{position}"
            depth = index if stack.depths is None else getattr(module.config, stack.depths)[position]
            where = f"{name}.{path}"
            attention = _attention(where, block, stack, family)
            ends_text = stack.ends_text is not None and bool(_attribute(where, block, stack.ends_text, family))
            sites.append(BlockSite(name, index, path, block, stack, parameters, depth, attention, ends_text))
    return tuple(sites)


def _attention(name: str, block: nn.Module, stack: BlockStack, family: Family) -> tuple[AttentionSite, ...]:
    """Those of the stack's attentions that the block has."""
    found = []
    for fact in stack.attention:
        if _attribute(name, block, fact.path, family) is not None:
            found.append(fact)
        elif not fact.optional:
            raise AccelError(f"{name}.{fact.path} is None; the facts of the family {family.name} expect an attention")
    return tuple(found)


def _attribute(name: str, block: nn.Module, path: str, family: Family) -> Any:
    try:
        return attrgetter(path)(block)
    except AttributeError:
        raise AccelError(
            f"{name} has no `{path}`, which the facts of the family {family.name} name: {DIFFERS}"
        ) from None


def _argument(name: str, parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name in kwargs:
        return kwargs[name]
    return args[parameters.index(name)] if name in parameters[: len(args)] else None
