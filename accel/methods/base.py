"""What every method has: a configuration, what it says of itself, and an installation that hands back its undo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from accel.pipelines.sites import PipelineFacts
from accel.runtime.board import Board
from accel.runtime.clock import Clock
from accel.runtime.hooks import HookSet
from accel.runtime.recorder import Recorder, RunRecord

Keyword = Literal["attention", "cache", "quantize"]
Slot = Literal["attention", "prior", "blocks", "linears"]


class MethodConfig(BaseModel):
    """Base of the methods' configurations: frozen, strict, and no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # The name under which the user asks for the method, and the keyword that takes it.
    method: ClassVar[str]
    keyword: ClassVar[Keyword]


@dataclass(frozen=True)
class Context:
    """What a method is given to work with."""

    facts: PipelineFacts
    clock: Clock
    board: Board
    recorder: Recorder
    hooks: HookSet


class Method(ABC):
    """One method, on one pipeline.

    `slot` is the part of the transformer that the method takes; two methods never share one.
    """

    slot: ClassVar[Slot]

    def __init__(self, config: Any, context: Context) -> None:
        self.config = config
        self.context = context

    @abstractmethod
    def install(self) -> list[Callable[[], None]]:
        """Installs the method and returns what undoes it. It may raise `AccelError`, but then changes nothing."""

    @abstractmethod
    def start_run(self, num_steps: int) -> None:
        """Called when a run begins, before its first step."""

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
