"""What a method says of itself as data: the slot it fills, what it needs, and what its settings bring along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from accel.methods.base import MethodConfig

# The part of the transformer that a method takes; two methods never share one.
Slot = Literal["attention", "prior", "blocks", "linears"]
# tail: something cheap stands for the blocks of tokens that are not attended exactly.
# prior: what was computed in an earlier step stands for them.
# token order: blocks of the transformer are given their image tokens in an order that is not the model's.
Capability = Literal["tail", "prior", "token order"]

# Those that operations have a form of their own for; elsewhere the reference form runs.
FAST_DEVICES = ("cpu", "cuda", "xpu")


@dataclass(frozen=True)
class Brings:
    """A capability that a method has unless a setting has one of these values."""

    capability: Capability
    setting: str
    unless: tuple[Any, ...]

    def in_words(self, config: MethodConfig) -> str | None:
        """The setting that brings it, as the user would write it; None where it is not brought."""
        value = getattr(config, self.setting)
        return None if value in self.unless else f"{self.setting}={value!r}"


@dataclass(frozen=True)
class Needs:
    """What a method needs of the place where it is to stand; what is empty or 0 asks for nothing.

    Attributes:
        attention: kinds of softmax attention among image tokens, as in `accel.pipelines.facts.AttentionSite`, that it
            works on, in modules that can be stood in for; every one on the family must be among them.
        head_sizes: channels that a head of this attention may have.
        dtypes: what the denoisers may compute in.
        guidance: forms of guidance, as in `accel.pipelines.facts.Guidance`.
        devices: kinds of devices with a fast form; elsewhere it runs slowly, and the summary says so.
        steps: in a run of fewer it brings little, and the summary says so.
        token_blocks: calls with fewer blocks of image tokens run as in the plain pipeline.
    """

    attention: tuple[str, ...] = ()
    head_sizes: range = range(0)
    dtypes: tuple[str, ...] = ()
    guidance: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    steps: int = 0
    token_blocks: int = 0

    def in_words(self) -> list[str]:
        """One remark for each of them."""
        found = []
        if self.attention:
            sizes = f", heads of {sizes_in_words(self.head_sizes)} channels" if self.head_sizes else ""
            found.append(f"{either(self.attention)} attention among image tokens{sizes}")
        if self.dtypes:
            found.append(either(self.dtypes))
        if self.guidance:
            found.append(f"{either(self.guidance)} guidance")
        if self.token_blocks:
            found.append(f"{self.token_blocks} blocks of image tokens or more")
        if self.steps:
            found.append(f"runs of {self.steps} steps or more, to bring much")
        if self.devices:
            found.append(f"{either(self.devices)}, to be fast")
        return found


def either(words: tuple[str, ...]) -> str:
    """The words as a choice: "a, b or c"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def sizes_in_words(sizes: range) -> str:
    """Multiples, or a range of numbers."""
    if sizes.step > 1 and sizes.start == sizes.step:
        return f"multiples of {sizes.step} up to {sizes[-1]}"
    return f"{sizes.start} to {sizes[-1]}"
