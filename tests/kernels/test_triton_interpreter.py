"""The repaired interpreter computes in bf16 and fp8 what torch computes."""

import pytest
import torch
import triton
import triton.language as tl

pytestmark = pytest.mark.interpreter

FORMATS = {
    "bf16": (tl.bfloat16, torch.bfloat16),
    "e4m3": (tl.float8e4nv, torch.float8_e4m3fn),
    "e5m2": (tl.float8e5, torch.float8_e5m2),
}


@triton.jit
def _cast(source, target, SIZE: tl.constexpr):
    lanes = tl.arange(0, SIZE)
    tl.store(target + lanes, tl.load(source + lanes).to(target.dtype.element_ty))


@triton.jit
def _arithmetic(left, right, result, order, SIZE: tl.constexpr):
    lanes = tl.arange(0, SIZE)
    x, y = tl.load(left + lanes), tl.load(right + lanes)
    tl.store(result + lanes, x + y)
    tl.store(result + SIZE + lanes, x - y)
    tl.store(result + 2 * SIZE + lanes, x * y)
    tl.store(result + 3 * SIZE + lanes, -x)
    tl.store(result + 4 * SIZE + lanes, tl.abs(y))
    tl.store(order + lanes, (x < y).to(tl.int8))


@triton.jit
def _dot(left, right, result, SIZE: tl.constexpr):
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    tile = rows * SIZE + columns
    tl.store(result + tile, tl.dot(tl.load(left + tile), tl.load(right + tile)))


@triton.jit
def _count(bound, result):
    total = 0
    for step in range(tl.load(bound)):
        total += step
    tl.store(result, total)


def cast(source: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    target = torch.empty(source.shape, dtype=dtype)
    _cast[(1,)](source, target, SIZE=source.numel())
    return target


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.double().nan_to_num(nan=1e300), right.double().nan_to_num(nan=1e300))


def every_value(dtype: torch.dtype) -> torch.Tensor:
    """All finite values of the format, each of its bit patterns once."""
    bits = torch.uint8 if dtype.itemsize == 1 else torch.int16
    patterns = torch.arange(1 << (8 * dtype.itemsize)).to(bits).view(dtype)
    return patterns[patterns.float().isfinite()]


@pytest.mark.parametrize("format", FORMATS)
def test_casts_are_exact_to_float32_and_round_to_even_from_it(format):
    dtype = FORMATS[format][1]
    values = every_value(dtype)
    values = values[: 1 << (values.numel().bit_length() - 1)]
    assert same(cast(values, torch.float32), values.float())
    assert same(cast(cast(values, torch.float32), dtype), values)

    ordered = every_value(dtype).double().unique()
    halfway = (ordered[:-1] + ordered[1:]) / 2
    near = torch.cat([halfway, halfway * (1 + 2**-20), halfway * (1 - 2**-20)]).float()
    near = torch.cat([near, torch.randn(1 << 18)])[: 1 << 17]
    assert same(cast(near, dtype), near.to(dtype))


@pytest.mark.parametrize(("format", "largest"), [("e4m3", 448.0), ("e5m2", 57344.0)])
def test_casts_to_fp8_saturate(format, largest):
    values = torch.tensor([1e6, -1e6, torch.inf, -torch.inf])
    assert cast(values, FORMATS[format][1]).float().tolist() == [largest, -largest, largest, -largest]
    assert cast(torch.full((2,), torch.nan), FORMATS[format][1]).float().isnan().all()


def test_casts_between_half_types():
    values = torch.randn(4096).bfloat16()
    assert same(cast(values, torch.float16), values.half())
    assert same(cast(values.half(), torch.bfloat16), values)
    assert same(cast(torch.arange(256, dtype=torch.int32), torch.bfloat16), torch.arange(256).bfloat16())


def test_bf16_arithmetic():
    left, right = torch.randn(2, 4096).bfloat16()
    result, order = torch.empty(5, 4096, dtype=torch.bfloat16), torch.empty(4096, dtype=torch.int8)
    _arithmetic[(1,)](left, right, result, order, SIZE=4096)
    for actual, expected in zip(result, [left + right, left - right, left * right, -left, right.abs()], strict=True):
        assert same(actual, expected)
    assert torch.equal(order.bool(), left < right)


@pytest.mark.parametrize("format", FORMATS)
def test_dot(format):
    left, right = torch.randn(2, 32, 32).to(FORMATS[format][1])
    result = torch.empty(32, 32)
    _dot[(1,)](left, right, result, SIZE=32)
    expected = left.double() @ right.double()
    assert (result - expected).square().mean().sqrt() <= 1e-6 * expected.square().mean().sqrt()


def test_a_loop_whose_bound_is_in_memory():
    result = torch.empty(1, dtype=torch.int32)
    _count[(1,)](torch.tensor([5], dtype=torch.int32), result)
    assert result.item() == 10
