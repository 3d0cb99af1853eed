"""What every method has: a configuration, what it says of itself, and an installation that hands back its undo."""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from accel.errors import AccelError
from accel.methods.handover import Handover
from accel.methods.needs import Brings, Needs, Slot
from accel.pipelines.facts import Family
from accel.pipelines.sites import PipelineFacts
from accel.runtime.board import Board
from accel.runtime.clock import Clock, Moment
from accel.runtime.hooks import HookSet
from accel.runtime.recorder import Recorder, RunRecord

Keyword = Literal["attention", "cache", "quantize"]
Toward = Literal["raise", "lower", "extend"]


class MethodConfig(BaseModel):
    """Base of the methods' configurations: frozen, strict, and no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # The name under which the user asks for the method, and the keyword that takes it.
    method: ClassVar[str]
    keyword: ClassVar[Keyword]
    # Settings that are its own only where no sparse attention stands beside it.
    alone: ClassVar[frozenset[str]] = frozenset()
    # Of what the recorder is told of a call (`computed`, `sparse`, ...), the settings that would change it.
    levers: ClassVar[dict[str, tuple[str, ...]]] = {}
    # Of those words, the ones that stand for something other than what the plain pipeline computes.
    approximate: ClassVar[frozenset[str]] = frozenset()
    # Of those settings, what brings a call nearer to the plain pipeline's; the opposite makes it cheaper.
    toward_plain: ClassVar[dict[str, Toward]] = {}
    # Settings that name a file. In a configuration's file they are read from beside it.
    files: ClassVar[tuple[str, ...]] = ()
    # What its settings bring along that rules speak of.
    brings: ClassVar[tuple[Brings, ...]] = ()

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise AccelError(f"{self.method}: {_one_line(error, type(self))}") from error

    def resolved(self, family: Family, beside: frozenset[Slot] = frozenset()) -> Self:
        """The same with the values that hold on a family, beside methods in these slots, where nothing is said; refuses
        settings that nothing would read."""
        return self


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that comes nearest, in brackets to be put behind a refusal, or else all of them."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if close:
        return f" (nearest: {close[0]!r})"
    return f" (known: {', '.join(sorted(known))})" if known else ""


def steps_in(fraction: float, num_steps: int) -> int:
    """The steps in a fraction of a run, a begun one whole; a product such as 0.28 * 25 = 7.000000000000001 is 7."""
    return math.ceil(fraction * num_steps - 1e-9)


def _one_line(error: ValidationError, config: type[MethodConfig]) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return str(first.get("ctx", {}).get("error", first["msg"]))  # Of settings that do not go together.
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return f"no setting {name!r}{nearest(name, config.model_fields)}"
    context = first.get("ctx", {})
    bound = next((context[key] for key in ("ge", "le") if key in context), None)
    hint = f" (nearest: {bound})" if bound is not None else ""
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{name}={first['input']!r} is not possible: {message}{hint}"


@dataclass(frozen=True)
class Context:
    """What a method is given to work with."""

    facts: PipelineFacts
    clock: Clock
    board: Board
    recorder: Recorder
    hooks: HookSet
    handover: Handover = field(default_factory=Handover)


class Method(ABC):
    """One method, on one pipeline; `config` has gone through `resolved` and through the rules."""

    slot: ClassVar[Slot]
    needs: ClassVar[Needs] = Needs()

    def __init__(self, config: Any, context: Context) -> None:
        self.config = config
        self.context = context

    @classmethod
    def on(cls, config: Any, context: Context) -> Method:
        """The method for one pipeline; where it has several forms, the one that is for that pipeline."""
        return cls(config, context)

    @abstractmethod
    def install(self) -> list[Callable[[], None]]:
        """Installs the method and returns what undoes it. It may raise `AccelError`, but then changes nothing."""

    @abstractmethod
    def start_run(self, num_steps: int) -> None:
        """Called when a run begins, before its first step."""

    def start_call(self, moment: Moment) -> None:  # noqa: B027 - most have nothing to say
        """Called before each call of a denoiser, for what is to be on the board before its first block."""

    @abstractmethod
    def end_run(self) -> None:
        """Called when a run ends, also by an exception; without a run it must do no harm."""

    @abstractmethod
    def report(self, record: RunRecord) -> dict[str, Any]:
        """The figures of one run, as plain numbers for `summary().to_dict()`."""

    @abstractmethod
    def describe(self, record: RunRecord) -> str:
        """The same as one line for a person."""

    @abstractmethod
    def idle_reason(self, record: RunRecord) -> str | None:
        """Why the method did nothing in a run although it was on, or None when it acted or was not asked to."""


@dataclass(frozen=True)
class Registered:
    """A method as the registry knows it."""

    config: type[MethodConfig]
    method: type[Method]


_REGISTRY: dict[str, Registered] = {}

M = TypeVar("M", bound=type[Method])


def register(config: type[MethodConfig]) -> Callable[[M], M]:
    """Joins a configuration and its method under the configuration's name."""

    def decorate(method: M) -> M:
        _REGISTRY[config.method] = Registered(config, method)
        return method

    return decorate


def registered() -> dict[str, Registered]:
    """All methods by name."""
    return dict(_REGISTRY)
