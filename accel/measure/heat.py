"""Error and time of each block at each step, from two runs that are made for it and for nothing else.

The error of a block call is that of the block alone, given the input that it had in the accelerated run:

    error = ||y - y*|| / ||y*||

with y its output under the methods and y* the output of a plain copy of the block, both over all of the block's streams
together (text too, where that is one), norms in float32. Blocks that are skipped together, of which the first adds the
change of all and the others hand on what they were given, are one: y* is then the plain copies one after the other,
and each of these blocks has the error at the end of the last.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

import accel
from accel.config import AccelConfig
from accel.errors import AccelError
from accel.methods.base import Context
from accel.pipelines.context_parallel import sharing_tokens
from accel.pipelines.sites import BlockSite, PipelineFacts, inspect_pipeline
from accel.reporting.heat import densities
from accel.runtime.clock import Moment
from accel.runtime.device_clock import mark, seconds_between
from accel.runtime.recorder import ByBlock, RunRecord, When, when

SCHEMA = 1
KIND = "accel heat"

Streams = tuple[torch.Tensor, ...]


def measured_heat(pipe: Any, config: AccelConfig, run: Callable[[], Any]) -> dict[str, Any]:
    """Runs a pipeline twice with methods on: once beside plain copies of its blocks, once with a clock at each block.

    The copies take as much memory as the blocks, and their run the time of a plain one beside. The first run warms up
    the second. On a GPU the clock are events in its queue, which wait for nothing; they include the gaps in which it
    waits for the host.

    Args:
        pipe: a pipeline of a known family, with nothing on it.
        config: the methods; at least one.
        run: calls the pipeline once, always alike.

    Returns:
        Plain data: "schema", "kind", "steps", "maps" and "unmeasured". A map has "denoiser", "branch", and "density",
        "error" and "seconds" as [block][step] over all steps of the run, in which None stands for a call that was not
        made or not measured; or None as a whole. "unmeasured" says by measure why something is missing.

    Raises:
        AccelError: a pipeline of no known family, no method in the configuration, or none of the runs was seen.
    """
    if not config.methods:
        raise AccelError("a heat map is of methods, and none is on")
    facts = inspect_pipeline(pipe)
    why_not = _why_not_compared(facts)
    errors: ByBlock = {}
    comparison = None if why_not is not None else _Comparison(facts)
    with accel.enable(pipe, config) as session:
        context = session.methods[0].context
        compared = _ran(context, run, None if comparison is None else comparison.probes(context))
        if comparison is not None:
            errors = comparison.errors(compared)
            # The copies go before what is timed begins.
            comparison = None
        clock = _BlockClock(torch.device(getattr(pipe, "_execution_device", None) or "cpu"))
        timed = _ran(context, run, clock.probes(facts, context))
    unmeasured = {}
    if why_not is not None:
        unmeasured["error"] = why_not
    elif compared.events != timed.events:
        errors = {}
        unmeasured["error"] = (
            "the methods decided otherwise in the run that was compared than in the one that was timed"
        )
    elif missing := _missing(errors):
        unmeasured["error"] = missing
    density = {(one.denoiser, one.branch): one.values for one in densities(session.summary().to_dict()["runs"][-1])}
    if not density:
        unmeasured["density"] = "no attention was sparse"
    maps = [
        {
            "denoiser": denoiser,
            "branch": branch,
            "density": density.get((denoiser, branch)),
            "error": _rounded(errors.get(denoiser, {}).get(branch)),
            "seconds": _rounded(table),
        }
        for denoiser, branches in clock.seconds(timed).items()
        for branch, table in branches.items()
    ]
    return {"schema": SCHEMA, "kind": KIND, "steps": timed.steps_seen, "maps": maps, "unmeasured": unmeasured}


def _why_not_compared(facts: PipelineFacts) -> str | None:
    if facts.family.chunks is not None:
        return f"the blocks of {facts.family.title} keep keys and values between calls, which a second call would spoil"
    for denoiser in facts.denoisers:
        if sharing_tokens(denoiser.module) is not None:
            return "context parallelism spreads the tokens over processes"
        if hasattr(denoiser.module, "_hf_hook") or any(one.is_meta for one in denoiser.module.parameters()):
            return "the weights are offloaded, and the plain copies of the blocks need them"
    return None


Probe = tuple[BlockSite, Callable[..., Any]]


def _ran(context: Context, run: Callable[[], Any], probes: Sequence[Probe] | None) -> RunRecord:
    """The record of a run with something around each block, within which all methods are but a tiled order."""
    undo = [context.hooks.add(site.module, probe) for site, probe in probes or ()]
    before = len(context.recorder.runs)
    try:
        run()
    finally:
        for take_off in undo:
            take_off()
    if len(context.recorder.runs) != before + 1:
        raise AccelError(f"a heat map is of one run, and the call made {len(context.recorder.runs) - before}")
    return context.recorder.runs[-1]


class _BlockClock:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: list[tuple[When, int, Any, Any]] = []

    def probes(self, facts: PipelineFacts, context: Context) -> list[Probe]:
        return [(site, partial(self._around, context, site)) for one in facts.denoisers for site in one.blocks]

    def seconds(self, record: RunRecord) -> ByBlock:
        return record.by_block((call, block, seconds_between(*span)) for call, block, *span in self._spans)

    def _around(
        self,
        context: Context,
        site: BlockSite,
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        moment = context.clock.now
        if moment is None:
            return proceed(*args, **kwargs)
        began = mark(self._device)
        output = proceed(*args, **kwargs)
        self._spans.append((when(moment), site.index, began, mark(self._device)))
        return output


@dataclass
class _Unit:
    """Blocks that are skipped together, or one that is not: what they returned, and what plain ones would have."""

    moment: Moment
    blocks: list[int] = field(default_factory=list)
    returned: Streams = ()
    plain: Streams = ()


class _Comparison:
    """Plain copies of all blocks, called on what the blocks of an accelerated run are given."""

    def __init__(self, facts: PipelineFacts) -> None:
        self._blocks = [(site, copy.deepcopy(site.module)) for denoiser in facts.denoisers for site in denoiser.blocks]
        self._units: dict[str, _Unit] = {}
        self._found: dict[tuple[When, int], torch.Tensor] = {}

    def probes(self, context: Context) -> list[Probe]:
        return [(site, partial(self._around, context, site, plain)) for site, plain in self._blocks]

    def errors(self, record: RunRecord) -> ByBlock:
        values = [value.item() for value in self._found.values()]
        return record.by_block((call, block, value) for (call, block), value in zip(self._found, values, strict=True))

    def _around(
        self,
        context: Context,
        site: BlockSite,
        plain: nn.Module,
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        moment = context.clock.now
        if moment is None or _has_hooks(site.module):
            self._units.pop(site.denoiser, None)
            return proceed(*args, **kwargs)
        given = site.streams(args, kwargs)
        # As they were: a block may change them in place.
        kept = tuple(stream.clone() for stream in given)
        output = proceed(*args, **kwargs)
        returned = site.unpack(output, given)
        unit = self._units.get(site.denoiser)
        if unit is None or unit.moment is not moment or not (_same(given, unit.returned) and _same(returned, given)):
            unit = self._units[site.denoiser] = _Unit(moment, plain=kept)
        inputs = unit.plain
        for name, stream in zip(site.stack.streams, inputs, strict=True):
            args, kwargs = site.with_argument(name, stream, args, kwargs)
        unit.blocks.append(site.index)
        unit.returned, unit.plain = returned, site.unpack(plain(*args, **kwargs), inputs)
        error = _error(unit.returned, unit.plain)
        for block in unit.blocks:
            self._found[when(moment), block] = error
        return output


def _has_hooks(block: nn.Module) -> bool:
    """Whether hooks of diffusers are on a block, as of a guider that skips it, which the copy has not."""
    return any(getattr(vars(one).get("_diffusers_hook"), "_hook_order", None) for one in block.modules())


def _same(these: Streams, those: Streams) -> bool:
    return len(these) == len(those) and all(a is b for a, b in zip(these, those, strict=True))


def _error(returned: Streams, plain: Streams) -> torch.Tensor:
    off = sum((a.float() - b.float()).square().sum() for a, b in zip(returned, plain, strict=True))
    whole = sum(stream.float().square().sum() for stream in plain)
    return torch.sqrt(off / whole) if isinstance(off, torch.Tensor) else torch.zeros(())


def _missing(errors: ByBlock) -> str | None:
    """Of what there is no error, in words."""
    values = [value for branches in errors.values() for table in branches.values() for row in table for value in row]
    broken = sum(value is not None and not math.isfinite(value) for value in values)
    if broken:
        return f"the values of {broken} block calls were not finite"
    return None if values else "no block was compared: hooks of diffusers are on all of them"


def _rounded(table: list[list[float | None]] | None) -> list[list[float | None]] | None:
    """To four places; what is not finite is left out, since JSON has no number for it."""
    if table is None:
        return None
    return [[_short(value) for value in row] for row in table]


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
