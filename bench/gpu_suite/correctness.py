"""Every kernel on the device against the reference form in float64, and twice for the same bits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accel.kernels.block_attention import block_attention, dense_attention
from accel.kernels.block_mass import block_mass
from accel.kernels.block_statistics import block_means, block_statistics
from accel.kernels.delta import apply_delta, compute_delta, update_delta
from accel.kernels.forms import use
from bench.gpu_suite import exactness
from bench.gpu_suite.cells import Cells
from bench.gpu_suite.problems import BOUNDS, DTYPES, SUM_BOUNDS, memory_of_nan, random, relative, results_of

Call = Callable[..., Any]
TAILS = ("listed", "zeroth", "hybrid", "prior", "all")
# Tokens of query and key: what every block size divides, so that no kernel has a mask to make, and what none does.
WHOLE, RAGGED = (256, 384), (300, 333)


def run(cells: Cells, device: str, tiny: bool) -> None:
    """All cells; `tiny` leaves a sample that a CPU can do.

    Every head size with blocks of 64, and blocks of 32 and 128 with the two sizes that kernels compute in: most of the
    time goes to the compiler, and other sizes differ from those in a mask alone.
    """
    pairs = [(size, 64) for size in (64, 72, 96, 112, 128)]
    pairs += list(itertools.product((64, 128), (32, 128)))
    for name, dtype in DTYPES.items():
        for size, block in [(64, 32)] if tiny else pairs:
            where = f"{name}/head{size}/block{block}"
            layouts = ("whole", "ragged", "padded") if block == 64 or tiny else ("padded",)
            for tail, layout in itertools.product(TAILS, layouts):
                # The kernel of ragged sequences is that of padded ones; what differs is how its lists are prepared.
                if layout == "ragged" and tail not in ("listed", "all"):
                    continue
                measure = partial(_attention, dtype, size, block, tail, layout, device)
                cells.run(f"block_attention/{where}/{tail}/{layout}", measure)
            cells.run(f"dense_attention/{where}", partial(_dense, dtype, size, block, device))
            cells.run(f"block_statistics/{where}", partial(_means, dtype, size, block, device))
            cells.run(f"block_mass/{where}", partial(_mass, dtype, size, block, device))
        cells.run(f"delta/{name}", partial(_delta, dtype, device))
    exactness.run(cells, device)


def compare(call: Call, tensors: dict[str, Tensor | None], bound: float, **options: Any) -> dict[str, Any]:
    """The largest relative error of any result against float64, whether it is within the bound, and the same twice.

    The error is None where it is no finite number, as where a result is NaN, or minus infinity at another place than it
    should be.
    """
    with memory_of_nan():
        found, again = (results_of(call(**tensors, **options)) for _ in range(2))
    wide = {n: t.double() if t is not None and t.is_floating_point() else t for n, t in tensors.items()}
    with use("reference"):
        wanted = results_of(call(**wide, **options))
    errors = []
    for result, exact in zip(found, wanted, strict=True):
        nothing = exact == -math.inf
        if not torch.equal(result == -math.inf, nothing):
            errors.append(math.nan)
        errors.append(relative(torch.where(nothing, 0.0, result.double()), torch.where(nothing, 0.0, exact)))
    error = max(errors, key=lambda e: math.inf if math.isnan(e) else e)
    same = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    return {
        "error": error if math.isfinite(error) else None,
        "bound": bound,
        "correct": error < bound and same,
        "same_bits": same,
    }


def _sequences(dtype: torch.dtype, size: int, device: str, lengths: tuple[int, int] = RAGGED) -> dict[str, Tensor]:
    # Grouped heads.
    return {
        "query": random(device, dtype, 2, lengths[0], 4, size, seed=1),
        "key": random(device, dtype, 2, lengths[1], 2, size, seed=2),
        "value": random(device, dtype, 2, lengths[1], 2, size, seed=3),
    }


def _sizes(block: int, device: str) -> Tensor:
    """Room for the blocks of the ragged keys: some short, some empty."""
    number = -(-RAGGED[1] // block)
    sizes = torch.full((2, number), block, dtype=torch.int32)
    sizes[:, -1] = RAGGED[1] - block * (number - 1)
    sizes[0, 0], sizes[1, number // 2] = block // 2 + 1, 0
    return sizes.to(device)


def _attention(dtype: torch.dtype, size: int, block: int, tail: str, layout: str, device: str) -> dict[str, Any]:
    queries, keys = lengths = WHOLE if layout == "whole" else RAGGED
    tensors: dict[str, Tensor | None] = dict(_sequences(dtype, size, device, lengths))
    sizes = _sizes(block, device) if layout == "padded" else None
    rows, number = -(-queries // block), -(-keys // block)
    generator = torch.Generator().manual_seed(4)
    order = torch.rand(2, 4, rows, number, generator=generator).argsort(-1).int()
    tensors["blocks"] = order[..., : max(1, number // 2)].contiguous().to(device)
    counts = torch.randint(0, max(1, number // 2) + 1, (2, 4, rows), generator=generator)
    tensors["counts"] = counts.int().to(device)
    tensors["sizes"] = sizes
    if tail in ("zeroth", "hybrid", "all"):
        found = block_statistics(tensors["key"], tensors["value"], block, sizes, first_order=tail != "zeroth")
        tensors |= {"mean_key": found.mean_key, "mean_value": found.mean_value}
        if tail != "zeroth":
            tensors["first_order"] = found.first_order
    if tail in ("prior", "all"):
        tensors["prior"] = random(device, torch.float32, 2, queries, 4, size, seed=6)
        lse = random(device, torch.float32, 2, 4, queries, seed=7) + 2.0
        lse[0, 0, :5] = -math.inf
        tensors["prior_lse"] = lse
    return compare(block_attention, tensors, BOUNDS[dtype], block_size=block)


def _dense(dtype: torch.dtype, size: int, block: int, device: str) -> dict[str, Any]:
    tensors = {**_sequences(dtype, size, device), "sizes": _sizes(block, device)}
    return compare(dense_attention, tensors, BOUNDS[dtype], block_size=block)


def _means(dtype: torch.dtype, size: int, block: int, device: str) -> dict[str, Any]:
    given = _sequences(dtype, size, device)
    tensors = {"key": given["key"], "value": given["value"], "sizes": _sizes(block, device)}
    bound = SUM_BOUNDS[dtype]
    found = compare(block_statistics, tensors, bound, block_size=block, first_order=True, spread=True)
    means = compare(lambda key, sizes: block_means(key, block, sizes), {n: tensors[n] for n in ("key", "sizes")}, bound)
    return {
        **found,
        "error_of_means": means["error"],
        "correct": found["correct"] and means["correct"],
        "same_bits": found["same_bits"] and means["same_bits"],
    }


def _mass(dtype: torch.dtype, size: int, block: int, device: str) -> dict[str, Any]:
    given, sizes = _sequences(dtype, size, device), _sizes(block, device)
    _, lse = dense_attention(**given, sizes=sizes, block_size=block)
    mean_key = block_means(given["key"], block, sizes)
    tensors = {"query": given["query"], "key": given["key"], "lse": lse, "sizes": sizes, "mean_key": mean_key}
    return compare(block_mass, tensors, SUM_BOUNDS[dtype], block_size=block)


def _delta(dtype: torch.dtype, device: str) -> dict[str, Any]:
    names = ("output", "input", "before", "slope")
    given = {name: random(device, dtype, 2, 333, 257, seed=seed) for seed, name in enumerate(names)}
    calls: list[Call] = [
        lambda output, input, before, slope: compute_delta(output, input, before),
        lambda output, input, before, slope: update_delta(output, input, before, slope, 3),
        lambda output, input, before, slope: apply_delta(input, before, slope, 2),
    ]
    found = [compare(call, given, BOUNDS[dtype]) for call in calls]
    errors = [f["error"] for f in found]
    return {
        "error": None if None in errors else max(errors),
        "bound": BOUNDS[dtype],
        "correct": all(f["correct"] for f in found),
        "same_bits": all(f["same_bits"] for f in found),
    }
