"""Context parallelism of diffusers over two processes on a CPU, and what a test has them do.

`ModelMixin.enable_parallelism` counts accelerators, of which there are none here; `spread` does all else that it does,
with diffusers' own functions.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks import apply_context_parallel
from diffusers.hooks.context_parallel import remove_context_parallel
from diffusers.models import attention_dispatch
from diffusers.models._modeling_parallel import ParallelConfig

import accel
from accel.kernels.block_attention import dense_attention
from accel.methods.fingerprint import fingerprint
from accel.methods.flashblock_calibration import Calibration, Conditions
from accel.pipelines.attention import AttentionCall, HeadExchange
from accel.pipelines.sites import inspect_pipeline
from tests.conformance.snapshot import snapshot
from tests.tiny.calls import STEPS
from tests.tiny_pipelines import TINY

WORLD = 2
ULYSSES = {"ulysses_degree": WORLD}
RING = {"ring_degree": WORLD}
_PATIENCE = datetime.timedelta(seconds=300)
# A backend of diffusers that cannot run here, in the place of which one runs that gives a log-sum-exp.
_WITH_LSE = attention_dispatch.AttentionBackendName._NATIVE_FLASH


@dataclass(frozen=True)
class Job:
    """A tiny pipeline with methods on, in one process and in two."""

    family: str
    settings: dict[str, Any]
    degrees: dict[str, Any] = field(default_factory=lambda: ULYSSES)
    # What the pipeline is called with beside its usual arguments.
    call: dict[str, Any] = field(default_factory=dict)
    # FlashBlock goes by a calibration, which has one head computed anew at every step.
    calibrated: bool = False


def work(rank: int, folder: Path, jobs: dict[str, Job]) -> None:
    """What one process does; writes what it found, under its rank."""
    torch.set_num_threads(1)
    # Each method tells that the models here are too small for it.
    warnings.simplefilter("ignore", accel.AccelWarning)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=_PATIENCE)
    found: dict[str, Any] = {name: _compared(job, rank, folder) for name, job in jobs.items()}
    found |= {"orders": _orders(), "refused": _refused(), "exchange": _exchanges()}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@contextmanager
def spread(pipe: Any, **degrees: Any) -> Iterator[None]:
    """Spreads the tokens of a pipeline's transformers over all processes."""
    config = ContextParallelConfig(**degrees)
    mesh = dist.init_device_mesh("cpu", config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    parallel = ParallelConfig(context_parallel_config=config)
    parallel.setup(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), mesh=mesh)
    models = [model for name in ("transformer", "transformer_2") if (model := getattr(pipe, name, None)) is not None]
    for model in models:
        _configure(model, parallel)
        apply_context_parallel(model, config, model._cp_plan)
    try:
        yield
    finally:
        for model in models:
            _configure(model, None)
            remove_context_parallel(model, model._cp_plan)


def _configure(model: Any, parallel: ParallelConfig | None) -> None:
    model._parallel_config = parallel
    for module in model.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = parallel


@contextmanager
def log_sum_exps(pipe: Any) -> Iterator[None]:
    """Dense attention by a backend that gives the log-sum-exp which ring attention needs."""
    registry = attention_dispatch._AttentionBackendRegistry
    before, active = registry._backends[_WITH_LSE], registry._active_backend
    registry._backends[_WITH_LSE] = _dense
    constraints, registry._constraints[_WITH_LSE] = registry._constraints[_WITH_LSE], []
    pipe.transformer.set_attention_backend(_WITH_LSE.value)
    try:
        yield
    finally:
        pipe.transformer.reset_attention_backend()
        # Choosing one for a model makes it that of all.
        registry.set_active_backend(active)
        registry._backends[_WITH_LSE], registry._constraints[_WITH_LSE] = before, constraints


def _dense(query: Any, key: Any, value: Any, _parallel_config: Any = None, **others: Any) -> Any:
    if _parallel_config is None:
        return dense_attention(query, key, value)[0]
    return attention_dispatch._templated_context_parallel_attention(
        query, key, value, forward_op=_dense_part, backward_op=None, _parallel_config=_parallel_config
    )


def _dense_part(ctx: Any, query: Any, key: Any, value: Any, *others: Any, **named: Any) -> Any:
    out, lse = dense_attention(query, key, value)
    return out, lse.transpose(1, 2)


@cache
def _built(family: str) -> Any:
    return TINY[family].build()


def _run(pipe: Any, family: str, settings: dict[str, Any], **call: Any) -> dict[str, Any]:
    with accel.enable(pipe, **settings) as session:
        result = TINY[family].run(pipe, **call)
    return {"result": result, "run": session.summary().to_dict()["runs"][-1]}


def _compared(job: Job, rank: int, folder: Path) -> dict[str, Any]:
    """The first process also does the job alone."""
    pipe, settings = _built(job.family), job.settings
    if job.calibrated:
        settings = {**settings, "calibration": str(_calibration(pipe).save(folder / f"heads{rank}.json"))}
    with log_sum_exps(pipe) if "ring_degree" in job.degrees else nullcontext():
        alone = _run(pipe, job.family, settings, **job.call) if rank == 0 else None
        with spread(pipe, **job.degrees):
            return {"alone": alone, "shared": _run(pipe, job.family, settings, **job.call)}


def _calibration(pipe: Any) -> Calibration:
    weights = fingerprint("flashblock", inspect_pipeline(pipe).denoisers)
    places = [f"transformer/{step}/{layer}" for step in range(STEPS) for layer in range(4)]
    return Calibration(
        Conditions(weights, STEPS, "flashblock", 0.5, 64, "call", similarity=0.85, lse_drift=0.05),
        cosine={place: [1.0, 0.0] for place in places},
        drift={place: [0.0, 0.0] for place in places},
    )


def _exchanges() -> dict[str, bool]:
    """Whether text and image come in one piece each, before the attention, and as they were behind it."""
    found, rank = {}, dist.get_rank()
    for text, words, image, uneven in (
        ("none", 0, 10, False),
        ("prefix", 6, 10, False),
        ("suffix", 6, 10, False),
        ("prefix", 5, 7, True),
        ("suffix", 7, 10, True),
    ):
        config = ContextParallelConfig(**ULYSSES, ulysses_anything=uneven)
        mesh = dist.init_device_mesh("cpu", config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
        parallel = ParallelConfig(context_parallel_config=config)
        parallel.setup(rank, WORLD, torch.device("cpu"), mesh=mesh)
        parts = [torch.arange(words), torch.arange(image) + 100]
        parts = parts if text == "prefix" else parts[::-1]
        whole, mine = torch.cat(parts), torch.cat([part.tensor_split(WORLD)[rank] for part in parts])
        heads, channels = torch.arange(4)[:, None] * 1000, torch.arange(2) * 10000
        own = mine[None, :, None, None] + heads + channels
        all_tokens = whole[None, :, None, None] + heads.chunk(WORLD)[rank] + channels
        own_words = int((mine < 100).sum())
        mask = (mine % 2 == 0)[None, None, None]
        call = AttentionCall(text, own_words, mask, dispatched=True, parallel=parallel)
        exchange = HeadExchange.of(call, own, image)
        first, second = exchange.gather(own, -own)
        told = exchange.call(call)
        found[f"{text} {words}"] = (
            torch.equal(first, all_tokens)
            and torch.equal(second, -all_tokens)
            and torch.equal(exchange.scatter(first), own)
            and torch.equal(told.mask, (whole % 2 == 0)[None, None, None])
            and (told.text_length, told.spread) == (words, False)
            and exchange.like(own).shape == all_tokens.shape
            and HeadExchange.of(replace(call, text_length=None), own, image) == exchange
            and exchange.suits(call, own)
            and not exchange.suits(call, own[:, 1:])
        )
    return found


def _orders() -> dict[str, Any]:
    """Either may be first, and what is taken off leaves what was before."""
    case, pipe = TINY["wan"], _built("wan")
    settings: dict[str, Any] = {"attention": "pisa", "cache": "delta", "quantize": "int8"}
    found: dict[str, Any] = {}
    # Spreading once leaves the registry of diffusers' hooks behind, and running once attributes of the pipeline.
    with spread(pipe, **ULYSSES):
        found["plain"] = case.run(pipe)
    alone = snapshot(pipe)
    with spread(pipe, **ULYSSES):
        before = snapshot(pipe)
        with accel.enable(pipe, attention="pisa", density=1.0, cache="tdc", threshold=0.0):
            found["identity"] = case.run(pipe)
        found["first spread"] = _run(pipe, "wan", settings)["result"]
        found["restored"] = snapshot(pipe) == before
        found["plain again"] = case.run(pipe)
    with accel.enable(pipe, **settings), spread(pipe, **ULYSSES):
        found["first enabled"] = case.run(pipe)
    found["restored alone"] = snapshot(pipe) == alone
    return found


def _refused() -> dict[str, str | None]:
    """What is said at enable, before anything is changed."""
    pipe = _built("wan")
    found: dict[str, str | None] = {}
    for name, degrees, settings in (
        ("ring", RING, {"attention": "pisa"}),
        ("ring flashblock", RING, {"cache": "flashblock"}),
    ):
        with spread(pipe, **degrees):
            before = snapshot(pipe)
            found[name] = _refusal(partial(accel.enable, pipe, **settings))
            assert snapshot(pipe) == before
    with spread(pipe, **ULYSSES):
        for name, method in (("flashblock", {"cache": "flashblock"}), ("mixed", {"quantize": "mixed"})):
            with accel.enable(pipe, **method) as session:
                found[f"calibrated {name}"] = _refusal(session.methods[0].measure)  # type: ignore[attr-defined]
    return found


def _refusal(call: Callable[[], Any]) -> str | None:
    try:
        call()
    except accel.AccelError as error:
        return str(error)
    return None
