"""Random arguments for the kernels, on the device, and the measure of an error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from accel.kernels.block_statistics import block_means
from accel.kernels.selection import kept_number, top_blocks

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# The largest relative error (root mean square) against float64.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# That of sums, which are float32 whatever they sum: products of half types are exact.
SUM_BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}


def waves(tokens: int, heads: int, size: int, dtype: torch.dtype, device: str, seed: int = 5) -> list[Tensor]:
    """Query, key and value (1, tokens, heads, size) that follow smooth waves along the sequence, as neighbouring tokens
    of a picture do; queries resemble the keys of their own place."""
    generator = torch.Generator(device).manual_seed(seed)
    number = 64
    phases = 2 * math.pi * torch.rand(number, generator=generator, device=device)
    frequencies = 4 * math.pi * torch.arange(1, number + 1, device=device)
    field = torch.sin(torch.arange(tokens, device=device)[:, None] / tokens * frequencies + phases).to(dtype)
    mixed = []
    for _ in range(3):
        mixing = torch.randn(number, heads * size, generator=generator, device=device).to(dtype) / math.sqrt(number / 4)
        # In place and in the dtype itself: at 118,800 tokens there is no room for wide copies.
        values = field @ mixing
        values += 0.3 * torch.randn(values.shape, generator=generator, device=device, dtype=dtype)
        mixed.append(values.view(1, tokens, heads, size))
    query, key, value = mixed
    return [(query + key) / math.sqrt(2), key, value]


def block_scores(query: Tensor, key: Tensor, block: int) -> Tensor:
    """The product of block means, (batch, heads, query blocks, key blocks)."""
    return block_means(query, block).permute(0, 2, 1, 3) @ block_means(key, block).permute(0, 2, 3, 1)


def choice(query: Tensor, key: Tensor, block: int, density: float) -> tuple[Tensor, Tensor]:
    """The best blocks of each row by `block_scores`."""
    scores = block_scores(query, key, block)
    return top_blocks(scores, kept_number(density, scores.shape[-1]))


def relative(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference over that of what is wanted; NaN stays NaN."""
    wanted = wanted.double()
    size = wanted.square().mean().sqrt().item()
    return (found.double() - wanted).square().mean().sqrt().item() / (size or 1.0)


def differing(found: Tensor, wanted: Tensor) -> float:
    """The share of numbers that are not the same bits; any NaN is another NaN's equal."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return 1.0
    if found.dtype == torch.float8_e4m3fn:
        found, wanted = found.view(torch.uint8), wanted.view(torch.uint8)
    return float(((found != wanted) & ~(found.isnan() & wanted.isnan())).double().mean())


def random(device: str, dtype: torch.dtype, *shape: int, seed: int) -> Tensor:
    """Random numbers in the middle of memory that is NaN otherwise, so that a stray read shows."""
    generator = torch.Generator(device).manual_seed(seed)
    values = torch.randn(shape, generator=generator, device=device).to(dtype)
    memory = torch.full((values.numel() + 8192,), math.nan, dtype=dtype, device=device)
    return memory[4096 : 4096 + values.numel()].view(shape).copy_(values)


@contextmanager
def memory_of_nan() -> Iterator[None]:
    """New memory is full of NaN (the largest value for integers), so that what no kernel wrote shows."""
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    # Filling goes with this switch alone; operations that have no deterministic form are none of its business here.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def results_of(result: Any) -> tuple[Tensor, ...]:
    """The tensors that an operation answers with; those that were not asked for are None and left out."""
    parts = result if isinstance(result, tuple) else (result,)
    return tuple(part for part in parts if part is not None)
