"""Where the time of a run goes: torch's profiler, with names for blocks, attentions and linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from accel.errors import AccelError
from accel.measure.operation_costs import Cost, costs
from accel.measure.parts import DENOISER, TEXT, VAE
from accel.measure.wrapped import called, wrapped
from accel.pipelines.sites import BlockSite, Denoiser, inspect_pipeline

_PREFIX = "accel."
# Of the ranges of caches, which :class:`accel.methods.block_deltas.BlockDeltas` names.
_CACHE = "cache "


@dataclass
class Layer:
    """One linear layer or attention: what its calls had to do at least, and the time that they took.

    `flops` are floating-point operations (a multiplication and an addition are two); of an attention those of dense
    attention without its projections, whatever was left out. `moved` are the bytes of inputs, outputs and weights.
    An attention whose call does not tell how wide it is or what it attends to is not `counted`: it has seconds only.
    """

    name: str
    kind: str
    block: int
    calls: int = 0
    flops: float = 0.0
    moved: float = 0.0
    seconds: float = 0.0
    counted: bool = True


@dataclass(frozen=True)
class Operation:
    """One of torch's or Accel's operations: its own time, without that of the operations it calls, and with it.

    `flops` and `moved` are what its calls had to do at least in all of that time, as
    :func:`accel.measure.operation_costs.costs` counts it; None where that is not known.
    """

    name: str
    calls: int
    seconds: float
    whole_seconds: float
    flops: float | None = None
    moved: float | None = None


@dataclass
class Profile:
    """What was found in a run; seconds are the device's own where it is a GPU.

    `parts` and `blocks` have in them what methods do there; `caches` has what each cache of blocks does, within them.
    """

    layers: list[Layer] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    blocks: list[float] = field(default_factory=list)
    caches: dict[str, float] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    seconds: float = 0.0


def profiled(pipe: Any, run: Callable[[], Any], trace: Path | None = None) -> Profile:
    """Runs once under torch's profiler.

    Args:
        pipe: a pipeline of a known family, with whatever is on it.
        run: calls it.
        trace: where the Chrome trace is written; in it, ranges called `accel.block transformer 3`, `accel.linear
            transformer 3.ffn.net.2`, `accel.cache tdc` and so on lie around the operations.

    Returns:
        The layers in the order of the blocks, seconds of the parts and of each block, and the operations by their own
        time. The profiler itself takes time too, so that the whole is longer than without it.

    Raises:
        AccelError: a pipeline of no known family, or a GPU whose work the profiler cannot see.
    """
    facts = inspect_pipeline(pipe)
    device = torch.device(getattr(pipe, "_execution_device", None) or "cpu")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    layers: dict[str, Layer] = {}
    with ExitStack() as stack:
        for denoiser in facts.denoisers:
            stack.enter_context(called(denoiser.module, _within(DENOISER)))
            for site in denoiser.blocks:
                stack.enter_context(called(site.module, _within(_block_name(denoiser, site))))
                for layer, module, cost in _layers_of(denoiser, site):
                    layers[layer.name] = layer
                    stack.enter_context(_costed(module, layer, cost))
        for name, component in getattr(pipe, "components", {}).items():
            if name.startswith("text_encoder") and isinstance(component, nn.Module):
                stack.enter_context(wrapped(component, "forward", _within(TEXT)))
            elif name == "vae" and component is not None:
                for method in ("encode", "decode"):
                    if hasattr(component, method):
                        stack.enter_context(wrapped(component, method, _within(VAE)))
        with profile(activities=activities, record_shapes=True) as profiler, record_function(f"{_PREFIX}call"):
            run()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    return _read(profiler, layers, facts.denoisers, on_device=device.type == "cuda")


def _block_name(denoiser: Denoiser, site: BlockSite) -> str:
    return f"block {denoiser.name} {site.index}"


def _within(name: str) -> Callable[..., Any]:
    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with record_function(_PREFIX + name):
            return original(*args, **kwargs)

    return around


_CostOf = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], tuple[float, float] | None]


@contextmanager
def _costed(module: nn.Module, layer: Layer, cost: _CostOf) -> Iterator[None]:
    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with record_function(_PREFIX + layer.name):
            output = original(*args, **kwargs)
        flops, moved = found if (found := cost(module, args, kwargs, output)) is not None else (0.0, 0.0)
        layer.calls += 1
        layer.flops += flops
        layer.moved += moved
        layer.counted &= found is not None
        return output

    with wrapped(module, "forward", around):
        yield


def _layers_of(denoiser: Denoiser, site: BlockSite) -> Iterator[tuple[Layer, nn.Module, _CostOf]]:
    attentions = {f.path: f.kind for f in site.attention}
    for path, module in site.module.named_modules():
        if path in attentions and attentions[path] != "linear":
            name = f"attention {denoiser.name} {site.index}.{path}"
            yield Layer(name, path, site.index), module, _attention_cost(attentions[path])
        elif isinstance(module, nn.Linear):
            yield Layer(f"linear {denoiser.name} {site.index}.{path}", path, site.index), module, _linear_cost


def _linear_cost(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> tuple[float, float]:
    assert isinstance(module, nn.Linear)
    given = args[0] if args else kwargs["input"]
    weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    return 2.0 * given.numel() * module.out_features, float(given.nbytes + output.nbytes + weights)


def _attention_cost(kind: str) -> _CostOf:
    def cost(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> tuple[float, float] | None:
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        inner = _width(module)
        if not isinstance(hidden, torch.Tensor) or inner is None:
            return None
        batch, tokens = hidden.shape[0], hidden.shape[1]
        others = text.shape[1] if isinstance(text, torch.Tensor) else 0
        queries = tokens + others if kind == "joint" else tokens
        keys = others if kind == "cross" and others else queries
        moved = (2 * queries + 2 * keys) * batch * inner * hidden.element_size()
        return 4.0 * batch * queries * keys * inner, float(moved)

    return cost


def _width(attention: nn.Module) -> int | None:
    """The channels of all heads together: of its own projection, a LoRA around it too, or as a fused one tells."""
    width = getattr(getattr(attention, "to_q", None), "out_features", getattr(attention, "inner_dim", None))
    return width if isinstance(width, int) else None


def _read(profiler: Any, layers: dict[str, Layer], denoisers: tuple[Denoiser, ...], *, on_device: bool) -> Profile:
    """From the profiler's events; microseconds there."""

    def total(event: Any) -> float:
        return (event.device_time_total if on_device else event.cpu_time_total) / 1e6

    # On a GPU each range and kernel has a row of the device's own too, beside that of the host which holds the kernels
    # started in it: the one spans the gaps between them, the other would count them twice.
    events = {event.key: event for event in profiler.key_averages() if event.device_type == DeviceType.CPU}
    ranges = {key.removeprefix(_PREFIX): total(event) for key, event in events.items() if key.startswith(_PREFIX)}
    if not ranges.get("call"):
        raise AccelError("torch's profiler saw no work on the GPU; it needs CUPTI and the right to read its counters")
    for name, layer in layers.items():
        layer.seconds = ranges.get(name, 0.0)
    _without_projections(layers)
    counted = costs(profiler.profiler.kineto_results.events())
    operations = []
    for key, event in events.items():
        if not key.startswith((_PREFIX, "cuda", "ProfilerStep")):
            own = event.self_device_time_total if on_device else event.self_cpu_time_total
            cost = counted.get(key, Cost(None, None))
            operations.append(Operation(key, event.count, own / 1e6, total(event), cost.flops, cost.moved))
    return Profile(
        [layer for layer in layers.values() if layer.calls],
        {part: ranges.get(part, 0.0) for part in (TEXT, DENOISER, VAE)},
        [ranges.get(_block_name(denoiser, site), 0.0) for denoiser in denoisers for site in denoiser.blocks],
        {key.removeprefix(_CACHE): seconds for key, seconds in ranges.items() if key.startswith(_CACHE)},
        sorted((one for one in operations if one.seconds > 0), key=lambda one: -one.seconds),
        ranges.get("call", 0.0),
    )


def _without_projections(layers: dict[str, Layer]) -> None:
    """An attention's range holds its linear layers, which count for themselves."""
    for name, layer in layers.items():
        if name.startswith("attention "):
            inner = f"linear {name.removeprefix('attention ')}."
            own = sum(other.seconds for key, other in layers.items() if key.startswith(inner))
            layer.seconds = max(0.0, layer.seconds - own)
