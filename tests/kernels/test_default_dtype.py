"""The dtype and the device that a script has torch make its tensors with are none of an operation's business."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from accel.kernels.block_attention import block_attention, dense_attention
from accel.kernels.block_mass import block_mass
from accel.kernels.block_statistics import block_means, block_statistics
from accel.kernels.delta import apply_delta, compute_delta, delta_statistics, update_delta
from accel.kernels.forms import use
from accel.kernels.int8 import int8_linear, quantize_int8
from accel.kernels.nvfp4 import dequantize_nvfp4, nvfp4_to_int8, quantize_nvfp4
from accel.kernels.nvfp4_linear import nvfp4_linear, nvfp4_weight_linear, rounding_nvfp4_linear
from accel.kernels.rotation import rotate
from accel.kernels.selection import top_blocks


def results() -> list[Tensor]:
    """Every operation; those of sparse attention on blocks that are whole, ragged and empty."""
    generator = torch.Generator("cpu").manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)

    x, y, z = (make(3, 700) for _ in range(3))
    found: list[Tensor] = [*compute_delta(x, y, z), *compute_delta(x[:0], y[:0]), *compute_delta(x.half(), y.half())]
    found += [*update_delta(x, y, z, None, 2), *update_delta(x, y, z, y, 2), apply_delta(x, y), apply_delta(x, y, z, 3)]
    found.append(delta_statistics(x, y))
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = (make(number, 256, dtype=dtype) for number in (5, 24))
        codes, codes_of_weight = (quantize_int8(each) for each in (rows, weight))
        packed, packed_weight = (quantize_nvfp4(rows), quantize_nvfp4(weight, by_error=True))
        found += [*codes, *packed, *packed_weight, rotate(rows), *quantize_int8(rows, rotate=True)]
        found += [*nvfp4_to_int8(*packed_weight), dequantize_nvfp4(*packed, dtype)]
        found += [int8_linear(*codes, *codes_of_weight, None, dtype), nvfp4_weight_linear(rows, *packed_weight, None)]
        found += [nvfp4_linear(*packed, *packed_weight, None, dtype)]
        found += rounding_nvfp4_linear(rows, packed_weight[2], *packed_weight, rotate=True)
        query, key, value = (make(1, 72, 2, 16, dtype=dtype) for _ in range(3))
        sizes = torch.tensor([[16, 16, 9, 0, 8]], dtype=torch.int32, device="cpu")
        scores = make(1, 2, 5, 5)
        for counted in (None, sizes):
            mean_key, mean_value, matrix, norms = block_statistics(key, value, 16, counted, spread=True)
            assert matrix is not None and norms is not None
            blocks, counts = top_blocks(scores, 2, sizes=counted)
            dense, lse = dense_attention(query, key, value, block_size=16, sizes=counted)
            mass, tail = block_mass(query, key, lse, 16, counted, mean_key=mean_key)
            assert tail is not None
            found += [mean_key, mean_value, matrix, norms, blocks, counts, dense, lse, mass, tail]
            found += [block_means(key, 16, counted)]
            found += block_attention(query, key, value, blocks, counts, block_size=16, sizes=counted)
            found += block_attention(
                query,
                key,
                value,
                blocks,
                counts,
                block_size=16,
                sizes=counted,
                mean_key=mean_key,
                mean_value=mean_value,
                first_order=matrix,
                prior=dense,
                prior_lse=lse,
            )
    return found


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("form", ["cpu", "reference"])
def test_results_do_not_depend_on_what_torch_makes_by_default(form: str) -> None:
    with use(form):  # type: ignore[arg-type]
        expected = results()
        for dtype in (torch.float16, torch.float64):
            with default_dtype(dtype):
                again = results()
            for place, (one, other) in enumerate(zip(expected, again, strict=True)):
                assert one.dtype == other.dtype and torch.equal(one, other), (dtype, place)
        with torch.device("meta"):
            again = results()
        for place, (one, other) in enumerate(zip(expected, again, strict=True)):
            assert other.device == one.device and torch.equal(one, other), place
