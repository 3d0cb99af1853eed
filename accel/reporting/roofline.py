"""Layers against what the device can do: as a roofline, and as ideal against taken time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from accel.errors import AccelError
from accel.measure.ceilings import Ceilings
from accel.measure.profiling import Layer

_LINEAR, _ATTENTION, _IDEAL, _INK = "#7a9cc6", "#e8b84b", "#0b6e4f", "#222222"
# More layers than this are drawn as areas, where single bars could not be told apart.
_MOST_BARS = 160


def check_charts() -> None:
    """Raises `AccelError` where matplotlib is not installed, before anything has run."""
    _figure(1, 1)


def roofline(layers: Sequence[Layer], limits: Ceilings) -> bytes:
    """Operations a second over operations a byte, of each layer, below the roof of the device; a png file.

    Raises:
        AccelError: matplotlib is not installed.
    """
    figure = _figure(7.2, 4.6)
    axes = figure.add_subplot()
    shown = [layer for layer in layers if layer.seconds > 0 and layer.flops > 0]
    intensity = np.array([layer.flops / layer.moved for layer in shown])
    rate = np.array([layer.flops / layer.seconds for layer in shown]) / 1e9
    ridge = limits.flops / limits.bandwidth
    ends = np.array([*intensity, ridge])
    x = np.geomspace(ends.min() / 4, ends.max() * 4, 200)
    axes.plot(x, np.minimum(limits.flops, x * limits.bandwidth) / 1e9, color=_INK, linewidth=1.2)
    for word, colour in (("linear", _LINEAR), ("attention", _ATTENTION)):
        some = np.array([layer.name.startswith(word) for layer in shown], dtype=bool)
        if some.any():
            axes.scatter(intensity[some], rate[some], s=14, color=colour, label=word, zorder=3, alpha=0.8)
    axes.set(xscale="log", yscale="log", xlabel="operations for each byte moved", ylabel="Gflop/s")
    axes.annotate(
        f"{limits.flops / 1e9:,.0f} Gflop/s, {limits.bandwidth / 1e9:,.0f} GB/s, measured on this device",
        (0.02, 0.97),
        xycoords="axes fraction",
        va="top",
        fontsize=8,
        color=_INK,
    )
    return _png(figure, axes)


def waterline(layers: Sequence[Layer], limits: Ceilings) -> bytes:
    """For each layer in order the time that it took, and the ideal part of it below; a png file.

    Raises:
        AccelError: matplotlib is not installed.
    """
    figure = _figure(9.0, 3.8)
    axes = figure.add_subplot()
    taken = np.array([layer.seconds for layer in layers]) * 1e3
    ideal = np.array([limits.ideal_seconds(layer.flops, layer.moved) for layer in layers]) * 1e3
    attention = np.array([layer.name.startswith("attention") for layer in layers], dtype=bool)
    place = np.arange(len(layers))
    if len(layers) <= _MOST_BARS:
        colours = [_ATTENTION if one else _LINEAR for one in attention]
        axes.bar(place, taken, width=0.9, color=colours)
        axes.bar(place, np.minimum(ideal, taken), width=0.9, color=_IDEAL)
    else:
        for colour, some in ((_LINEAR, ~attention), (_ATTENTION, attention)):
            axes.fill_between(place, np.where(some, taken, 0), step="mid", color=colour, linewidth=0)
        axes.fill_between(place, np.minimum(ideal, taken), step="mid", color=_IDEAL, linewidth=0)
    starts = [i for i in range(len(layers)) if i == 0 or layers[i].block < layers[i - 1].block or _new(layers, i)]
    every = max(1, len(starts) // 12)
    axes.set_xticks([starts[i] for i in range(0, len(starts), every)])
    axes.set_xticklabels([f"block {layers[starts[i]].block}" for i in range(0, len(starts), every)], fontsize=7)
    axes.set_ylabel("milliseconds in all")
    handles = [
        _patch(_IDEAL, "ideal"),
        _patch(_LINEAR, "lost in linear layers"),
        _patch(_ATTENTION, "lost in attention"),
    ]
    axes.legend(handles=handles, frameon=False, fontsize=8)
    return _png(figure, axes, legend=False)


def _new(layers: Sequence[Layer], index: int) -> bool:
    return layers[index].block != layers[index - 1].block


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise AccelError('the charts need matplotlib: pip install "dit-accel[bench]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any, axes: Any, *, legend: bool = True) -> bytes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if legend:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()
