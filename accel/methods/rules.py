"""What can stand where and beside what, checked before anything is installed.

Rules speak of slots and capabilities, and never of a method: which one fills a slot or brings a capability, methods say
of themselves (`accel.methods.needs`). All rules are about one method or about two, so that three stand together where
each two of them do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accel.errors import AccelError
from accel.methods.base import Method, MethodConfig, registered
from accel.methods.needs import Capability, Needs, either, sizes_in_words
from accel.pipelines.attention import find_attention
from accel.pipelines.facts import Family, Guidance
from accel.pipelines.sites import PipelineFacts

# Other formats are for storage, and say nothing of what is computed in.
_COMPUTED_IN = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Apart:
    """Two capabilities that do not go together; `instead` gives up the first of them."""

    one: Capability
    other: Capability
    why: str
    instead: str


APART = (Apart("tail", "prior", "would both stand for the blocks that are not exact", "set tail='none'"),)


@dataclass(frozen=True)
class Place:
    """What is known of where methods are to stand; `of` tells it of a pipeline.

    Attributes:
        guidance: of the pipeline; None where that is not known.
        dtypes: what each denoiser computes in.
        blocks: paths and classes of the blocks on the main path.
        heads: gives paths and head sizes of the attentions among image tokens, or None where that is not known; it may
            refuse attentions that cannot be stood in for.
    """

    family: Family
    guidance: Guidance | None = None
    dtypes: tuple[tuple[str, str], ...] = ()
    blocks: tuple[tuple[str, str], ...] = ()
    heads: Callable[[], Sequence[tuple[str, int]] | None] = lambda: None

    @property
    def kinds(self) -> set[str]:
        """Of the attentions among image tokens."""
        beside = itertools.chain.from_iterable(self.family.beside.values())
        stacks = (*self.family.stacks, *beside)
        return {site.kind for stack in stacks for site in stack.attention if site.among_tokens}

    @classmethod
    def of(cls, facts: PipelineFacts) -> Place:
        """The place that a pipeline is."""

        def heads() -> list[tuple[str, int]]:
            found = []
            for denoiser in facts.denoisers:
                for site in find_attention(denoiser):
                    module: Any = site.module
                    found.append((f"{site.denoiser}.{site.path}", module.inner_dim // module.heads))
            return found

        return cls(
            facts.family,
            facts.guidance,
            tuple((d.name, str(getattr(d.module, "dtype", "")).removeprefix("torch.")) for d in facts.denoisers),
            tuple((f"{b.denoiser}.{b.path}", type(b.module).__name__) for d in facts.denoisers for b in d.blocks),
            heads,
        )


def checked(configs: Sequence[MethodConfig], place: Place) -> tuple[MethodConfig, ...]:
    """The configurations with the values that hold in this place where they say nothing.

    Raises `AccelError`, one line that names what is wrong and the nearest thing that works, where one of them cannot
    stand there, or two of them not beside each other.
    """
    methods = [_method(config) for config in configs]
    _check_slots(configs, methods)
    settled = []
    for config, method in zip(configs, methods, strict=True):
        beside = frozenset(other.slot for other in methods if other is not method)
        if "attention" in beside:
            _check_alone(config)
        settled.append(config.resolved(place.family, beside))
    for rule, one, other in itertools.product(APART, settled, settled):
        first, second = _brings(one, rule.one), _brings(other, rule.other)
        if one is not other and first and second:
            raise AccelError(f"{one.method} with {first} and {other.method} {rule.why}: {rule.instead}")
    for config, method in zip(settled, methods, strict=True):
        _check_needs(config.method, method.needs, place)
        _check_order(config, place)
    return tuple(settled)


def standing(
    configs: Sequence[MethodConfig], optional: Sequence[str], place: Place
) -> tuple[tuple[MethodConfig, ...], tuple[str, ...]]:
    """As :func:`checked`, but methods that are optional are left out where they cannot stand: those that do stand, and
    for each of the others a remark with the reason. Of two optional ones that exclude each other the first stays.
    """
    kept = [config for config in configs if config.method not in optional]
    left_out = []
    for config in configs:
        if config in kept:
            continue
        try:
            checked([*kept, config], place)
        except AccelError as error:
            left_out.append(f"{config.method} is left out: {error}")
        else:
            kept.append(config)
    return checked([config for config in configs if config in kept], place), tuple(left_out)


def remarks(method: Method, num_steps: int, device: str) -> list[str]:
    """What keeps a method from bringing much in a run of so many steps on this kind of device."""
    name, needs, found = method.config.method, method.needs, []
    if num_steps < needs.steps:
        found.append(f"{name} brings little with fewer than {needs.steps} steps: {num_steps} here")
    if needs.devices and device not in needs.devices:
        found.append(f"{name} has fast kernels for {either(needs.devices)}: on {device} it runs slowly")
    return found


def refusal(names: Sequence[str], family: Family) -> str | None:
    """Why methods, with their defaults, cannot stand together on a family; None where they can."""
    try:
        checked([registered()[name].config() for name in names], Place(family))
    except AccelError as error:
        return str(error)
    return None


def pairs(family: Family) -> list[tuple[str, str, str | None]]:
    """Every two methods that stand on a family, and why not together with their defaults; None where they do."""
    standing = [name for name in sorted(registered()) if refusal([name], family) is None]
    return [(*two, refusal(two, family)) for two in itertools.combinations(standing, 2)]


def _method(config: MethodConfig) -> type[Method]:
    return registered()[config.method].method


def _brings(config: MethodConfig, capability: Capability) -> str | None:
    return next((words for b in config.brings if b.capability == capability and (words := b.in_words(config))), None)


def _check_slots(configs: Sequence[MethodConfig], methods: Sequence[type[Method]]) -> None:
    taken: dict[str, str] = {}
    for config, method in zip(configs, methods, strict=True):
        first = taken.setdefault(method.slot, config.method)
        if first != config.method:
            raise AccelError(f"{first} and {config.method} both take the {method.slot}: use one of the two")


def _check_alone(config: MethodConfig) -> None:
    for setting in sorted(config.alone):
        value = getattr(config, setting)
        if value is not None:
            raise AccelError(
                f"{config.method}: {setting}={value} is for {config.method} alone, and the attention beside it chooses "
                f"the exact blocks: set {setting} there"
            )


def _check_needs(name: str, needs: Needs, place: Place) -> None:
    if needs.attention:
        foreign = next((kind for kind in place.kinds if kind not in needs.attention), None)
        if foreign is not None:
            raise AccelError(
                f"{name} works on {either(needs.attention)} attention, and that of {place.family.title} is {foreign} "
                f"attention{_without(lambda other: not other.attention or foreign in other.attention)}"
            )
        heads = place.heads()
        if heads is not None and not heads:
            raise AccelError(
                f"{name} needs softmax attention among image tokens, and the transformers of {place.family.name} "
                f"have none{_without(lambda other: not other.attention)}"
            )
        for path, size in heads or ():
            if needs.head_sizes and size not in needs.head_sizes:
                raise AccelError(
                    f"{name} has kernels for head sizes that are {sizes_in_words(needs.head_sizes)}; {path} has heads "
                    f"of {size}{_without(lambda other: not other.head_sizes)}"
                )
    for path, dtype in place.dtypes:
        if needs.dtypes and dtype in _COMPUTED_IN and dtype not in needs.dtypes:
            raise AccelError(
                f"{name} has kernels for {either(needs.dtypes)}, and {path} is in {dtype}: "
                f"convert it, with pipe.to(torch.{needs.dtypes[-1]})"
            )
    form = None if place.guidance is None else place.guidance.form
    if needs.guidance and form is not None and form not in needs.guidance:
        raise AccelError(
            f"{name} needs {either(needs.guidance)} guidance, and this pipeline of {place.family.name} has {form}"
            f"{_without(lambda other: not other.guidance)}"
        )


def _without(suits: Callable[[Needs], bool]) -> str:
    """What does without, for the end of a refusal."""
    # A number format stands in for no other method.
    entries = (entry for _, entry in sorted(registered().items()) if entry.method.slot != "linears")
    found = [entry.config for entry in entries if suits(entry.method.needs)]
    words = tuple(f"{config.keyword}={config.method!r}" for config in found)
    return f"; {either(words)} does without" if words else ""


def _check_order(config: MethodConfig, place: Place) -> None:
    """Whether blocks may be given their tokens in another order, where a method would."""
    if not _brings(config, "token order"):
        return
    free, why = place.family.free_order, None
    if free is None:
        why = f"nothing is known of how {place.family.title} takes its tokens in another order"
    else:
        bound = ((path, name) for path, name in place.blocks if name in free.except_blocks)
        why = next((f"{path} is a {name}, which treats some tokens by their place" for path, name in bound), None)
    if why is not None:
        raise AccelError(f"{config.method} cannot tile once per forward: {why}; use tiling='call'")
