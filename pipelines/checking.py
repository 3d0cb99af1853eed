"""The names of a family's facts against the modules of the installed diffusers, before anything is changed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import diffusers
from torch import nn

from accel.errors import AccelError
from accel.pipelines.facts import BlockStack, Family

if TYPE_CHECKING:
    from accel.pipelines.sites import BlockSite

DIFFERS = "this diffusers differs from the one that Accel was tested with"


def parameters_of(module: type) -> tuple[str, ...]:
    """Parameters of a class's forward, because offloading and other hooks replace the instance's."""
    forward: Any = module.forward  # type: ignore[attr-defined]
    return tuple(inspect.signature(forward).parameters)[1:]


def config_value(config: Any, name: str | None) -> int:
    """The number that a patch field of `TokenGrid` names, 1 for None."""
    if name is None:
        return 1
    field, _, position = name.partition(".")
    value = getattr(config, field)
    if position:
        value = value[int(position)]
    return value or 1


def check_class(name: str, module: nn.Module, family: Family) -> None:
    """Raises `AccelError` where a denoiser is wrapped as a whole or of a class that the family does not cover."""
    if hasattr(module, "_orig_mod"):
        raise AccelError(
            f"{name} is wrapped by torch.compile, which hides its blocks: "
            f"compile the blocks instead, with {name}.compile_repeated_blocks()"
        )
    if type(module).__name__ not in family.transformers:
        raise AccelError(
            f"{name} is a {type(module).__name__}, which the family {family.name} does not know: "
            f"it covers {', '.join(family.transformers)}"
        )


def check_marks(pipe: Any, family: Family) -> None:
    """Raises `AccelError` where the pipeline is without what tells its runs."""
    marks = family.marks
    for name in () if marks is None else (marks.start, marks.steps):
        # On the class: the value of a property may be there in a run only.
        if not hasattr(type(pipe), name) and name not in vars(pipe):
            raise AccelError(f"{type(pipe).__name__} has no `{name}`, which {_of(family)} name: {DIFFERS}")


def check_arguments(module: nn.Module, family: Family) -> None:
    """Raises `AccelError` where the facts name an argument of the denoiser or a field of its config that is not there.

    An argument that no call gives is told as None, so that another name would be one that is never given. A forward
    that takes arguments of any name, as one that others put into its place may, tells nothing of them.
    """
    grid, free = family.grid, family.free_order
    wanted = [family.named.get(name, name) for name in ("hidden_states", "timestep")]
    wanted += [name for name in (grid.ids, grid.shapes, *(grid.sizes or ())) if name is not None]
    wanted += [name for guidance in family.pipelines.values() for name in guidance.told_by]
    wanted += [] if family.chunks is None else [family.chunks.argument]
    if not _takes_any_name(type(module)):
        given = parameters_of(type(module))
        _require(type(module).__name__, wanted, given, family)
        # These one of the family's transformers may have alone.
        classes = [getattr(diffusers, name) for name in family.transformers if hasattr(diffusers, name)]
        anywhere = [*given, *(name for other in classes for name in parameters_of(other))]
        _require(" or ".join(family.transformers), () if free is None else free.unless_given, anywhere, family)
    for field in filter(None, grid.patch):
        try:
            found = config_value(module.config, field)
        except (AttributeError, IndexError, KeyError, TypeError):
            found = None
        if not isinstance(found, int):
            raise AccelError(
                f"the config of {type(module).__name__} has no number `{field}`, which {_of(family)} name: {DIFFERS}"
            )


def check_depths(module: nn.Module, stack: BlockStack, blocks: int, family: Family) -> None:
    """Raises `AccelError` where the config does not say where the blocks of a stack beside the main path run."""
    if stack.depths is not None:
        depths = getattr(module.config, stack.depths, None)
        if not isinstance(depths, Sequence) or len(depths) != blocks:
            raise AccelError(
                f"the config of {type(module).__name__} has no list `{stack.depths}` for the {blocks} blocks of "
                f"`{stack.path}`, which {_of(family)} name: {DIFFERS}"
            )


def check_block_arguments(sites: Sequence[BlockSite], family: Family) -> None:
    """Raises `AccelError` where blocks of the main path are without an argument that the facts name."""
    free = family.free_order
    brought = [] if free is None else [argument.name for argument in free.arguments]
    if sites:
        everywhere = [name for site in sites for name in site.parameters]
        _require(f"{sites[0].denoiser}, in all of its blocks,", brought, everywhere, family)
    for site in sites:
        where = f"{site.denoiser}.{site.path}, a {type(site.module).__name__},"
        masks = filter(None, (name for attention in site.attention for name in (attention.mask, attention.added)))
        _require(where, [site.stack.named.get(name, name) for name in masks], site.parameters, family)
        # One kind of block may have another name for what goes with its tokens than the next.
        if not set(brought) & set(site.parameters):
            _require(where, brought, site.parameters, family)


def _takes_any_name(module: type) -> bool:
    parameters = inspect.signature(module.forward).parameters.values()  # type: ignore[attr-defined]
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _require(where: str, wanted: Iterable[str], found: Iterable[str], family: Family) -> None:
    present = list(dict.fromkeys(found))
    for name in wanted:
        if name not in present:
            raise AccelError(
                f"{where} has no argument `{name}`, which {_of(family)} name, but {', '.join(present)}: {DIFFERS}"
            )


def _of(family: Family) -> str:
    return f"the facts of the family {family.name}"
