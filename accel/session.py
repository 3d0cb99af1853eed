"""`enable`, `disable`: one session per pipeline, from checking to exact undo."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from accel.config import CONFIG_NAME, AccelConfig
from accel.errors import AccelError, AccelWarning
from accel.methods.base import Context, Method, MethodConfig, registered
from accel.methods.rules import Place, remarks, standing
from accel.pipelines.context_parallel import sharing_tokens
from accel.pipelines.families import families
from accel.pipelines.other_caches import foreign_forward, other_cache
from accel.pipelines.sites import (
    Denoiser,
    PipelineFacts,
    check_guider,
    chunk_place,
    guides,
    inspect_pipeline,
    token_grid,
    told_branch,
)
from accel.presets import PRESETS, preset
from accel.reporting.run_report import Summary, summarize
from accel.runtime.board import Board
from accel.runtime.call_runs import watch_calls
from accel.runtime.clock import Clock
from accel.runtime.hooks import HookSet, hook_of
from accel.runtime.recorder import Recorder
from accel.runtime.runs import watch_branches, watch_runs, watch_whole_calls, watcher_of

_UNNAMED = (
    "a run went by plainly: its calls of the denoiser name no guidance branch, "
    "which this kind of pipeline does through the transformer's cache_context"
)


class Session:
    """The acceleration of one pipeline, as `enable` returns it; also a context manager that ends in `disable`."""

    def __init__(self, pipe: Any, facts: PipelineFacts, config: AccelConfig) -> None:
        self.config = config
        self._pipe = pipe
        self._facts = facts
        self._recorder = Recorder()
        self._board = Board()
        self._clock = Clock(facts.guidance)
        self._hooks = HookSet(self)
        self._undo: list[Callable[[], None]] = []
        context = Context(facts, self._clock, self._board, self._recorder, self._hooks)
        configs, self._left_out = standing(config.methods, config.optional, Place.of(facts))
        self._methods: list[Method] = [registered()[c.method].method.on(c, context) for c in configs]
        self._final: Summary | None = None
        self._warned = False
        self._outside_before = 0
        self._ids: tuple[Any, tuple[int, int, int] | None] | None = None

    def __enter__(self) -> Session:
        if not self.enabled:
            raise AccelError("this session is over, and its pipeline runs plainly: call accel.enable again for another")
        return self

    def __exit__(self, *exception: object) -> None:
        self.disable()

    @property
    def enabled(self) -> bool:
        """Whether the pipeline is accelerated now."""
        return bool(self._undo)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that are installed; none after `disable`."""
        return tuple(self._methods)

    def install(self) -> None:
        """Puts everything in place, or nothing when something fails on the way."""
        if self.enabled or self._final is not None:
            raise AccelError("a session is installed once: call accel.enable again for another")
        try:
            # What is made here must bear to be changed outside of inference mode.
            with torch.inference_mode(False):
                for method in self._methods:
                    self._undo.extend(method.install())
                for denoiser in self._facts.denoisers:
                    self._undo.append(self._hooks.add(denoiser.module, partial(self._denoise, denoiser)))
                    self._undo.append(watch_branches(denoiser.module, self._clock))
                self._undo.append(self._watch())
                self._undo.append(watch_whole_calls(self._pipe, self._call_began, self._recorder.call_over))
        except BaseException:
            self._take_off()
            raise

    def disable(self) -> None:
        """Gives the pipeline back as it was; the summary stays. Doing it again changes nothing."""
        if not self.enabled:
            return
        try:
            self._close_run(broken=True)
        finally:
            self._take_off()
        self._final = self.summary()
        # Whoever keeps the session for its summary does not keep the model with it.
        del self._pipe, self._facts
        self._methods = []

    def summary(self) -> Summary:
        """What really ran, run by run; also after `disable`."""
        if self._final is not None:
            return self._final
        return summarize(self._pipe, self._facts, self.config, self._methods, self._recorder, self._left_out)

    def forget(self) -> None:
        """Drops the records of the runs so far, so that a summary tells of those from here on and memory does not grow.

        Acceleration goes on as it was. Does nothing after `disable`, when the summary is final.
        """
        self._recorder.forget()
        self._outside_before = 0

    def _take_off(self) -> None:
        # A step may fail, as where the file of a dropped weight is gone; the next attempt goes on with it.
        with torch.inference_mode(False):
            while self._undo:
                self._undo[-1]()
                self._undo.pop()
        self._hooks.remove()

    def _watch(self) -> Callable[[], None]:
        marks = self._facts.family.marks
        if marks is None:
            return watch_runs(self._pipe, self._start_run, self._end_run, owner=self)
        return watch_calls(self._pipe, marks, self._start_run, self._end_run, owner=self)

    @property
    def _device(self) -> torch.device:
        return torch.device(getattr(self._pipe, "_execution_device", "cpu"))

    def _call_began(self) -> None:
        self._recorder.call_began(self._device)

    def _start_run(self, num_steps: int) -> None:
        check_guider(self._pipe, self._facts)
        displaced = self._displaced()
        self._outside_before = self._recorder.outside_calls
        device = self._device
        self._recorder.start_run(num_steps, device, by_calls=self._facts.family.marks is not None)
        self._clock.start_run(num_steps, guided=guides(self._pipe))
        for method in self._methods:
            method.start_run(num_steps)
            for text in remarks(method, num_steps, device.type):
                self._recorder.note(text)
        for text in displaced:
            self._recorder.note(text)
        for text in displaced:
            warnings.warn(text, AccelWarning, stacklevel=2)

    def _end_run(self, broken: bool) -> None:
        record = self._recorder.current
        unseen = record is not None and not record.steps_seen and not record.notes
        unnamed = unseen and self._recorder.outside_calls > self._outside_before
        if unnamed:
            self._recorder.note(_UNNAMED)
        self._close_run(broken)
        if unnamed:
            warnings.warn(_UNNAMED, AccelWarning, stacklevel=2)
        if record is None or record.state != "finished":
            return
        for method in self._methods:
            reason = method.idle_reason(record)
            if reason is not None:
                text = f"{method.config.method} was on and did nothing: {reason}"
                record.notes.append(text)
                warnings.warn(text, AccelWarning, stacklevel=2)

    def _close_run(self, broken: bool) -> None:
        self._clock.end_run()
        self._ids = None
        # A warning of a method may be made an error: the others and the record end all the same.
        with ExitStack() as ending:
            ending.callback(self._recorder.end_run, broken=broken)
            for method in reversed(self._methods):
                ending.callback(method.end_run)

    def _denoise(
        self, denoiser: Denoiser, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        timestep, sample = (denoiser.argument(name, args, kwargs) for name in ("timestep", "hidden_states"))
        chunk, filling = chunk_place(self._facts.family.chunks, denoiser, args, kwargs)
        if filling and self._clock.running:
            started = self._recorder.call_started(None)
            output = proceed(*args, **kwargs)
            self._recorder.call_ended(started)
            return output
        grid = partial(self._grid, denoiser, args, kwargs)
        branch = told_branch(self._facts.guidance, denoiser, args, kwargs)
        told = getattr(self._pipe, "_current_timestep", None)
        told = told if isinstance(told, torch.Tensor) else None
        with self._clock.call(denoiser.name, timestep, sample, grid, chunk, branch, told) as moment:
            if moment is None:
                self._outside()
                return proceed(*args, **kwargs)
            record = self._recorder.current
            if record is not None and record.grid is None:
                record.grid = moment.grid
                self._note_ranks(denoiser)
                if self._facts.family.marks is not None:
                    record.planned = getattr(self._pipe, self._facts.family.marks.steps)
            self._board.wipe()
            for method in self._methods:
                method.start_call(moment)
            started = self._recorder.call_started(moment)
            output = proceed(*args, **kwargs)
            self._recorder.call_ended(started)
            return output

    def _note_ranks(self, denoiser: Denoiser) -> None:
        ranks = sharing_tokens(denoiser.module)
        if ranks is not None:
            self._recorder.note(
                f"context parallelism: rank {ranks.rank} of {ranks.size}; the figures are of its tokens and heads"
            )

    def _grid(self, denoiser: Denoiser, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int, int] | None:
        facts = self._facts.family.grid
        if facts.ids is None:
            return token_grid(facts, denoiser, args, kwargs)
        # Reading position ids waits for the device, and a run gives the same ones to every call.
        ids = denoiser.argument(facts.ids, args, kwargs)
        if self._ids is None or self._ids[0] is not ids:
            self._ids = ids, token_grid(facts, denoiser, args, kwargs)
        return self._ids[1]

    def _outside(self) -> None:
        self._recorder.outside_calls += 1
        if watcher_of(self._pipe) is not self and not self._warned:
            self._warned = True
            warnings.warn(
                f"pipe.{self._marker} was replaced after enable, so that no run is seen and all run plainly: "
                "replace it first and enable then",
                AccelWarning,
                stacklevel=2,
            )

    @property
    def _marker(self) -> str:
        marks = self._facts.family.marks
        return "progress_bar" if marks is None else marks.start

    def _displaced(self) -> list[str]:
        """Makes good what happened to the modules since they were hooked, or says what cannot be made good."""
        texts = []
        known = {id(denoiser.module) for denoiser in self._facts.denoisers}
        for name in self._facts.family.denoisers:
            module = getattr(self._pipe, name, None)
            if module is not None and id(module) not in known:
                texts.append(
                    f"pipe.{name} was replaced after enable and runs plainly: call accel.disable(pipe) and enable again"
                )
        for denoiser in self._facts.denoisers:
            cache = other_cache(denoiser.name, denoiser.module)
            if cache is not None:
                texts.append(f"{cache[0]} beside Accel: use one of the two")
            elif (remark := foreign_forward(denoiser.name, denoiser.module)) is not None:
                texts.append(remark)
        whole = {id(denoiser.module): denoiser.name for denoiser in self._facts.denoisers}
        for module in self._hooks.lost():
            if id(module) in whole:
                texts.append(
                    f"pipe.{whole[id(module)]} was compiled as a whole after enable and runs plainly: "
                    "use compile_repeated_blocks() instead"
                )
            else:
                self._hooks.reinstall(module)
        return texts


def enable(
    pipe: Any,
    preset_or_config: str | Path | AccelConfig | dict[str, Any] | None = None,
    *,
    attention: str | MethodConfig | None = None,
    cache: str | MethodConfig | list[str | MethodConfig] | None = None,
    quantize: str | MethodConfig | None = None,
    **overrides: Any,
) -> Session:
    """Accelerates a diffusers pipeline until `disable`.

    Args:
        pipe: A diffusers pipeline of a family that `accel list` names.
        preset_or_config: A preset ("quality", "balanced", "fast"), an `AccelConfig`, or the path of a JSON or YAML
            file. With nothing at all, the `accel_config.json` beside the model is used, or else "balanced".
        attention: "dense", or the name or configuration of a sparse attention.
        cache: Name or configuration of a cache, or a list of them; "none" for no cache.
        quantize: Name or configuration of a quantization.
        **overrides: Settings by their flat name, each for the one active method that has it.

    Returns:
        The session: `.summary()`, `.disable()`, and a context manager that disables at its end.

    Raises:
        AccelError: One line that names what is wrong and the nearest thing that works; nothing is changed then.
    """
    facts = inspect_pipeline(pipe)
    _check_free(pipe, facts)
    given = {"attention": attention, "cache": cache, "quantize": quantize}
    config = resolve(preset_or_config, given, overrides, beside=_folder(pipe))
    session = Session(pipe, facts, config)
    session.install()
    return session


def disable(pipe: Any) -> None:
    """Gives a pipeline back as it was before `enable`; does nothing when it is not enabled."""
    session = _session(pipe)
    if session is not None:
        session.disable()


def summary(pipe: Any) -> Summary:
    """What really ran on an enabled pipeline; after `disable`, ask the session that `enable` returned.

    Raises:
        AccelError: the pipeline is not enabled.
    """
    session = _session(pipe)
    if session is None:
        raise AccelError(
            f"{type(pipe).__name__} is not enabled; keep what accel.enable returns, its summary() stays after disable"
        )
    return session.summary()


def resolve(
    preset_or_config: Any,
    given: dict[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    beside: Path | None = None,
) -> AccelConfig:
    """The configuration that a call of `enable` means.

    `given` are the keywords attention, cache and quantize, which replace what the preset or the file says of them; with
    one of them and nothing else, the others stay off. `overrides` are settings as in `AccelConfig.with_overrides`.
    `beside`: the model's folder, whose `accel_config.json` counts where nothing else is said.

    Raises:
        AccelError: one line that names what is wrong and the nearest thing that works: no such preset or method, a file
            that cannot be read, an unknown setting or an impossible value.
    """
    chosen = {keyword: value for keyword, value in (given or {}).items() if value is not None}
    if preset_or_config is None:
        if chosen:
            config = AccelConfig()
        elif beside is not None and (beside / CONFIG_NAME).is_file():
            config = AccelConfig.from_pretrained(beside)
        else:
            config = preset("balanced")
    else:
        config = _read(preset_or_config)
    if chosen:
        config = config.with_methods(**chosen)
    return config.with_overrides(overrides or {})


def _read(value: Any) -> AccelConfig:
    if isinstance(value, AccelConfig):
        return value
    if isinstance(value, dict):
        return AccelConfig.from_dict(value)
    if isinstance(value, MethodConfig):
        raise AccelError(f"a {type(value).__name__} goes to {value.keyword}=, as in enable(pipe, {value.keyword}=...)")
    if isinstance(value, Path) or (isinstance(value, str) and value not in PRESETS and _looks_like_path(value)):
        return AccelConfig.from_pretrained(value)
    if isinstance(value, str):
        if value in registered():
            keyword = registered()[value].config.keyword
            raise AccelError(f"no preset {value!r}; {value} is a method: enable(pipe, {keyword}={value!r})")
        return preset(value)
    raise AccelError(
        f"the second argument is a preset ({', '.join(PRESETS)}), an AccelConfig or a path, not {type(value).__name__}"
    )


def _looks_like_path(value: str) -> bool:
    return "/" in value or value.endswith((".json", ".yaml", ".yml"))


def _folder(pipe: Any) -> Path | None:
    name = getattr(getattr(pipe, "config", None), "_name_or_path", None)
    return Path(name) if name and Path(name).is_dir() else None


def _check_free(pipe: Any, facts: PipelineFacts) -> None:
    if watcher_of(pipe) is not None:
        raise AccelError(f"this {type(pipe).__name__} is accelerated already: call accel.disable(pipe) first")
    for denoiser in facts.denoisers:
        module = denoiser.module
        if hook_of(module) is not None:
            raise AccelError(
                f"pipe.{denoiser.name} is accelerated already, through another pipeline that shares it: "
                "call accel.disable on that one first"
            )
        if vars(module).get("_compiled_call_impl") is not None:
            raise AccelError(
                f"pipe.{denoiser.name} is compiled as a whole, which hides its blocks: "
                f"compile the blocks instead, with pipe.{denoiser.name}.compile_repeated_blocks()"
            )
        cache = other_cache(denoiser.name, module)
        if cache is not None:
            raise AccelError(f"{cache[0]}: {cache[1]} first")


def _session(pipe: Any) -> Session | None:
    owners = [watcher_of(pipe)]
    # Somebody may have put a progress bar of their own over the one that tells the owner.
    for name in {name for family in families().values() for name in family.denoisers}:
        module = getattr(pipe, name, None)
        hook = hook_of(module) if isinstance(module, torch.nn.Module) else None
        owners.append(hook.owner if hook is not None else None)
    return next((found for found in owners if isinstance(found, Session) and found._pipe is pipe), None)
