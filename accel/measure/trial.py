"""One setting on one pipeline: what its run gave, how long it took, and what it held."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

import accel
from accel.config import AccelConfig
from accel.errors import AccelError
from accel.measure.backend import compiled
from accel.measure.block_calls import count_block_calls
from accel.measure.one_run import TimedRun
from accel.measure.parts import DENOISER, watched_parts
from accel.measure.peak import peak_memory
from accel.measure.rivals import rival
from accel.session import Session

_OTHER = "other"


@dataclass(frozen=True)
class Preparation:
    """What is done to the session of a setting before its run, and the words that it is known by."""

    words: str
    do: Callable[[Session], None] = field(compare=False)


@dataclass(frozen=True)
class Setting:
    """What is compared: the plain pipeline, methods of Accel, a rival, any of them with another number of steps.

    `steps` None are those of the call. `prepared` goes with methods of Accel. `files` are those that its methods name,
    each with the sha256 of what it held.
    """

    name: str
    config: AccelConfig = field(default_factory=AccelConfig)
    steps: int | None = None
    rival: str | None = None
    rival_settings: Mapping[str, Any] = field(default_factory=dict)
    prepared: Preparation | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether nothing is on."""
        return self.rival is None and not self.config.methods

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without the name: two settings with the same data are the same."""
        return {
            "steps": self.steps,
            "config": self.config.to_dict() if self.config.methods else None,
            "rival": self.rival,
            "rival_settings": dict(self.rival_settings),
            **({} if self.prepared is None else {"prepared": self.prepared.words}),
            **({"files": dict(self.files)} if self.files else {}),
        }

    @classmethod
    def from_dict(cls, name: str, data: Mapping[str, Any]) -> Setting:
        """What `to_dict` gave, with a name; a setting that something was done for cannot be had from words."""
        if "prepared" in data:
            raise AccelError(f"setting {name!r} was prepared by the benchmark that it is of: {data['prepared']}")
        config = AccelConfig() if data["config"] is None else AccelConfig.from_dict(data["config"])
        return cls(name, config, data["steps"], data["rival"], data["rival_settings"], files=data.get("files", {}))

    @property
    def fingerprint(self) -> str:
        """Of the data; the name does not count."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Trial:
    """A finished run: what the pipeline returned, and its figures as plain data, which `attempt` names."""

    output: Any
    figures: dict[str, Any]


def attempt(
    pipe: Any, setting: Setting, arguments: Mapping[str, Any], call: Callable[[Mapping[str, Any]], TimedRun]
) -> Trial:
    """Runs the pipeline once with a setting on, and gives it back without it.

    Args:
        pipe: a pipeline of a known family, with nothing on it, that has run before.
        setting: what to put on it.
        arguments: of the pipeline's call.
        call: calls the pipeline with arguments and times it.

    Returns:
        The output, and "seconds" (the parts text_encoder, denoiser, vae and other, loop, and total), "steps" and
        "evaluations" as `TimedRun` counts them (those of the call's arguments where the pipeline does not tell),
        "tokens" of a denoiser's call, "tokens_per_second" (tokens times evaluations over the denoiser's seconds),
        "denoiser_calls", "block_calls" that were computed (None where blocks are compiled), "peak_bytes", "held_bytes"
        of what methods keep, "library" of a rival with its version, "left_behind" (attributes that its own undo left)
        and "summary" of the session, None for the plain pipeline.
    """
    if setting.steps is not None:
        arguments = {**arguments, "num_inference_steps": setting.steps}
    device = torch.device(getattr(pipe, "_execution_device", None) or "cpu")
    session = other = None
    with ExitStack() as stack:
        # A compiled block would be compiled anew for the count.
        calls = None if compiled(pipe) else stack.enter_context(count_block_calls(pipe))
        if setting.rival is not None:
            other = stack.enter_context(rival(pipe, setting.rival, **setting.rival_settings))
        elif setting.config.methods:
            session = stack.enter_context(accel.enable(pipe, setting.config))
            if setting.prepared is not None:
                setting.prepared.do(session)
        # Last, so that what a method or a rival does around the denoiser counts for the denoiser.
        parts = stack.enter_context(watched_parts(pipe))
        peak = stack.enter_context(peak_memory(device))
        done = call(arguments)
    summary = None if session is None else session.summary().to_dict()
    seconds = parts.seconds()
    steps = _asked_steps(pipe, arguments) if done.steps is None else done.steps
    evaluations = steps if done.evaluations is None else done.evaluations
    work = None if parts.tokens is None or evaluations is None else parts.tokens * evaluations
    return Trial(
        done.output,
        {
            "seconds": {
                **seconds,
                _OTHER: max(0.0, done.seconds - sum(seconds.values())),
                "loop": done.loop_seconds,
                "total": done.seconds,
            },
            "steps": steps,
            "evaluations": evaluations,
            "tokens": parts.tokens,
            "tokens_per_second": (work and seconds[DENOISER] and work / seconds[DENOISER]) or None,
            "denoiser_calls": parts.denoiser_calls,
            "block_calls": None if calls is None else calls.computed,
            "peak_bytes": peak.bytes,
            "held_bytes": other.held_bytes if other is not None else _held(summary),
            "library": None if other is None else other.library,
            "left_behind": [] if other is None else other.left_behind,
            "summary": summary,
        },
    )


def _asked_steps(pipe: Any, arguments: Mapping[str, Any]) -> int | None:
    parameter = inspect.signature(pipe.__call__).parameters.get("num_inference_steps")
    default = parameter.default if parameter is not None and isinstance(parameter.default, int) else None
    return arguments.get("num_inference_steps", default)


def _held(summary: dict[str, Any] | None) -> int:
    if summary is None or not summary["runs"]:
        return 0
    return sum(report.get("held_bytes", 0) for report in summary["runs"][-1]["methods"].values())
