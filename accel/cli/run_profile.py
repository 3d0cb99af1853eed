"""`accel profile`: the work, from loading to the trace, the charts and the table."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import accel
from accel.cli import call, methods
from accel.cli.methods import MethodOptions
from accel.cli.once import call_once, warm_up
from accel.cli.prepare import place
from accel.cli.printing import Format, columns, emit, say
from accel.cli.request import Request
from accel.cli.run_generate import chosen_methods, load_ready
from accel.measure.ceilings import Ceilings, ceilings
from accel.measure.profiling import Layer, Operation, Profile, profiled
from accel.measure.timing import machine
from accel.pipelines.sites import inspect_pipeline
from accel.reporting.files import Writer, bytes_writer, check_free, text_writer, write_together
from accel.reporting.roofline import check_charts, roofline, waterline

_STEPS = 8
_WARM_UP_STEPS = 2
# A share of the ceiling of products above this is more than a measurement that is off by a little.
_POSSIBLE = 1.1
_SHOWN_OPERATIONS = 12
_FILES = ("trace.json", "profile.json", "roofline.png", "waterline.png")


def carry_out(
    request: Request, options: MethodOptions, folder: Path, *, overwrite: bool, again: bool, form: Format
) -> None:
    """Runs once to warm up and once under the profiler, and writes what was found."""
    targets = {name: folder / name for name in _FILES}
    check_free(targets.values(), overwrite=overwrite)
    check_charts()
    config, origin = chosen_methods(request, options)
    ready = load_ready(request, config, place(request))
    pipe, request = ready.pipe, ready.request
    if "num_inference_steps" in call.parameters_of(pipe):
        request = replace(request, call={"num_inference_steps": _STEPS, **request.call})
    arguments = call.call_arguments(pipe, request)
    pipe.set_progress_bar_config(disable=True)
    device = torch.device(getattr(pipe, "_execution_device", None) or "cpu")
    say(f"{request.model}: {type(pipe).__name__}, {origin}: {methods.describe(config)}", form)
    # The pipeline's own is that of its first part, which may be an encoder.
    denoiser: Any = inspect_pipeline(pipe).denoisers[0].module
    limits = ceilings(device, denoiser.dtype, again=again)
    warm_up(pipe, request, config, _WARM_UP_STEPS)
    with tempfile.TemporaryDirectory() as made:
        trace = Path(made) / "trace.json"
        with accel.enable(pipe, config) if config.methods else nullcontext() as session:
            found = profiled(pipe, lambda: call_once(pipe, request, arguments), trace)
        counted = [layer for layer in found.layers if layer.counted]
        data = _data(found, limits, request, config.to_dict(), machine(device))
        files: dict[Path, Writer] = {
            targets["trace.json"]: bytes_writer(trace.read_bytes()),
            targets["profile.json"]: text_writer(json.dumps(data, indent=1) + "\n"),
            targets["roofline.png"]: bytes_writer(roofline(counted, limits)),
            targets["waterline.png"]: bytes_writer(waterline(counted, limits)),
        }
    write_together(files, overwrite=overwrite)
    if form is Format.JSON:
        emit({**data, "paths": {name: os.path.abspath(path) for name, path in targets.items()}})
        return
    if session is not None:
        say(str(session.summary()), form)
    for line in _lines(found, limits):
        say(line, form)
    say(f"{targets['trace.json']}: for chrome://tracing or ui.perfetto.dev", form)
    say(f"{targets['roofline.png']}, {targets['waterline.png']}: each layer against what the device can do", form)


def _data(
    found: Profile, limits: Ceilings, request: Request, config: dict[str, Any], here: dict[str, Any]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "accel profile",
        "model": request.model,
        "call": dict(request.call),
        "acceleration": config,
        "machine": here,
        "ceilings": asdict(limits),
        "seconds": found.seconds,
        "parts": found.parts,
        "blocks": found.blocks,
        "caches": found.caches,
        "layers": [_layer(layer, limits) for layer in found.layers],
        "operations": [asdict(one) for one in found.operations],
    }


def _layer(layer: Layer, limits: Ceilings) -> dict[str, Any]:
    """As it stands in `profile.json`; of one that is not counted, what follows from the count is null."""
    figures = {**asdict(layer), "ideal_seconds": limits.ideal_seconds(layer.flops, layer.moved)}
    return figures if layer.counted else figures | dict.fromkeys(("flops", "moved", "ideal_seconds"))


def _lines(found: Profile, limits: Ceilings) -> list[str]:
    """The parts, the layers by kind, and the operations that took the most."""
    out = [f"{found.seconds:.2f} s under the profiler, which slows a run down; shares are of that"]
    shares = [f"{part} {seconds / found.seconds:.0%}" for part, seconds in found.parts.items() if seconds]
    shares += [f"cache {name} {seconds / found.seconds:.1%} in its blocks" for name, seconds in found.caches.items()]
    out.append(", ".join(shares))
    rows: list[tuple[str, ...]] = [
        (
            "layers",
            "calls",
            "seconds",
            "share",
            "Gflop/s",
            "of the ceiling",
            "GB/s",
            "of the ceiling",
            "ideal",
            "bound by",
        )
    ]
    most = 0.0
    for kind, layers in _by_kind(found.layers).items():
        seconds, flops, moved = (sum(getattr(one, name) for one in layers) for name in ("seconds", "flops", "moved"))
        if not seconds:
            continue
        calls = str(sum(one.calls for one in layers))
        if not all(one.counted for one in layers):
            rows.append((kind, calls, f"{seconds:.3f}", f"{seconds / found.seconds:.1%}", *["–"] * 5, "not counted"))
            continue
        rate, flow = flops / seconds, moved / seconds
        most = max(most, rate / limits.flops)
        by = "products" if flops / limits.flops > moved / limits.bandwidth else "memory"
        rows.append(
            (
                kind,
                calls,
                f"{seconds:.3f}",
                f"{seconds / found.seconds:.1%}",
                f"{rate / 1e9:,.1f}",
                f"{rate / limits.flops:.0%}",
                f"{flow / 1e9:,.1f}",
                f"{flow / limits.bandwidth:.0%}",
                f"{limits.ideal_seconds(flops, moved) / seconds:.0%}",
                by,
            )
        )
    out += ["", *columns(rows, indent="")]
    if most > _POSSIBLE:
        out.append(
            f"{most:.0%} of a ceiling: work was left out or is in a coarser format, or the device was busy when the "
            "ceiling was measured (--measure-ceilings measures it again)"
        )
    rates = ("Gflop/s", "of the ceiling", "GB/s", "of the ceiling")
    rows = [("operations, own time", "calls", "seconds", "share", "with what it calls", *rates)]
    rows += [
        (
            one.name,
            str(one.calls),
            f"{one.seconds:.3f}",
            f"{one.seconds / found.seconds:.1%}",
            f"{one.whole_seconds:.3f}",
            *_rate(one.flops, one.whole_seconds, limits.flops),
            *_rate(one.moved, one.whole_seconds, limits.bandwidth),
        )
        for one in _shown(found.operations)
    ]
    return [*out, "", *columns(rows, indent=""), ""]


def _shown(operations: list[Operation]) -> list[Operation]:
    """Those that took the most time of their own, and all of Accel's, which on a CPU leave most of it to torch's."""
    first, others = operations[:_SHOWN_OPERATIONS], operations[_SHOWN_OPERATIONS:]
    return [*first, *(one for one in others if one.name.startswith("accel::"))]


def _rate(amount: float | None, seconds: float, ceiling: float) -> tuple[str, str]:
    if amount is None or not seconds:
        return "–", "–"
    rate = amount / seconds
    return f"{rate / 1e9:,.1f}", f"{rate / ceiling:.0%}"


def _by_kind(layers: list[Layer]) -> dict[str, list[Layer]]:
    """The same layer of all blocks together, the ones that took most first."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        word = "attention" if layer.name.startswith("attention") else "linear"
        found.setdefault(f"{word} {layer.kind}", []).append(layer)
    return dict(sorted(found.items(), key=lambda item: -sum(layer.seconds for layer in item[1])))
