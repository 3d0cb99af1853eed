"""nvfp4_linear and nvfp4_weight_linear: every form against float64, decoded or through block-scaled tensor cores."""

import importlib
import itertools
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from accel.kernels.forms import use
from accel.kernels.int8.tiles import TILES, Tile
from accel.kernels.nvfp4 import dequantize_nvfp4, quantize_nvfp4
from accel.kernels.nvfp4_linear import nvfp4_linear, nvfp4_weight_linear, reference, rounding_nvfp4_linear

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-5}
# Rows, outputs, channels.
SIZES = [(1, 1, 16), (5, 3, 48), (33, 35, 80), (16, 32, 64), (70, 17, 208)]


@pytest.fixture
def make(device, guarded):
    generator = torch.Generator().manual_seed(5)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return guarded(torch.randn(shape, generator=generator).to(dtype).to(device))

    return make


@pytest.fixture
def stored(make):
    """A matrix in NVFP4 whose rows differ in size."""
    return lambda rows, channels: quantize_nvfp4(make(rows, channels) * make(rows, 1).exp())


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that tiny matrices have several of them and ragged last ones."""
    for product in TILES:
        sizes = (128, 128, 64) if product == "nvfp4 native" else (16, 16, 32)
        monkeypatch.setitem(TILES, product, {80: Tile(*sizes, together=2)})
    monkeypatch.setattr(importlib.import_module("accel.kernels.nvfp4_linear.cpu"), "PIECE", 200)


def close(made, expected, dtype):
    assert made.dtype == dtype
    error = (made.double() - expected).norm() / expected.norm().clamp(min=1e-30)
    assert error <= BOUNDS[dtype]


def test_the_largest_scale_is_that_of_the_numbers():
    """Of every scale that there is, beside a smaller one; the last byte is NaN."""
    scales = torch.arange(128, dtype=torch.uint8).view(torch.float8_e4m3fn)
    found = torch.stack([reference.largest_scale(scales[: last + 1]) for last in range(128)])
    torch.testing.assert_close(found, scales.float(), rtol=0, atol=0, equal_nan=True)
    assert found.isnan().sum() == 1 and reference.largest_scale(scales[:0]) == 0


@pytest.mark.usefixtures("poisoned_memory", "small_tiles")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_both_in_nvfp4(make, stored, dtype, sizes):
    rows, outputs, channels = sizes
    x, weight = stored(rows, channels), stored(outputs, channels)
    expected = dequantize_nvfp4(*x, torch.float64) @ dequantize_nvfp4(*weight, torch.float64).T
    close(nvfp4_linear(*x, *weight, dtype=dtype), expected, dtype)
    bias = make(outputs, dtype=dtype)
    result = nvfp4_linear(*x, *weight, bias, dtype)
    assert result.is_contiguous()
    close(result, expected + bias.double(), dtype)


@pytest.mark.interpreter
@pytest.mark.usefixtures("poisoned_memory", "small_tiles")
@pytest.mark.parametrize("sizes", [(1, 1, 16), (5, 131, 48), (300, 35, 64), (130, 129, 208), (3, 5, 256)])
def test_the_instruction_for_both_gives_the_same(monkeypatch, sizes):
    """With scales in tiles of 128 rows and 64 channels, of which neither the rows nor the channels fill the last."""
    rows, outputs, channels = sizes
    monkeypatch.setattr("accel.kernels.nvfp4_linear.triton.native", lambda x: True)
    generator = torch.Generator().manual_seed(7)
    x, values = (torch.randn(count, channels, generator=generator) for count in (rows, outputs))
    weight, bias, scale = quantize_nvfp4(values), torch.randn(outputs, generator=generator), torch.tensor(0.25)
    codes, scales, _ = quantize_nvfp4(x, scale)
    expected = reference.nvfp4_linear(codes, scales, scale, *weight, bias, torch.float64)
    with use("triton"):
        close(nvfp4_linear(codes, scales, scale, *weight, bias), expected, torch.float32)
        made, largest = rounding_nvfp4_linear(x, scale, *weight, bias)
        close(made, expected, torch.float32)
        assert largest == scales.float().max()
        scales[0, 0] = math.nan
        assert nvfp4_linear(codes, scales, scale, *weight, bias).isnan().all(1).tolist() == [True] + [False] * (
            rows - 1
        )


@pytest.mark.usefixtures("poisoned_memory", "small_tiles")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_weight_alone_in_nvfp4(make, stored, dtype, sizes):
    rows, outputs, channels = sizes
    x, weight = make(rows, channels, dtype=dtype), stored(outputs, channels)
    expected = x.double() @ dequantize_nvfp4(*weight, torch.float64).T
    close(nvfp4_weight_linear(x, *weight), expected, dtype)
    bias = make(outputs)
    close(nvfp4_weight_linear(x, *weight, bias), expected + bias.double(), dtype)


@pytest.mark.usefixtures("poisoned_memory", "small_tiles")
@pytest.mark.parametrize("sizes", [(5, 3, 48), (9, 6, 256)])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_activations_that_are_rounded_give_the_product_of_their_codes(make, stored, dtype, sizes):
    """Bit for bit, with groups that are zero or below what a scale holds, and magnitudes that are cut."""
    rows, outputs, channels = sizes
    x = make(rows, channels, dtype=dtype)
    x[1], x[2] = 0, x[2] * 1e-4
    x[3, ::7] *= 100
    weight, bias = stored(outputs, channels), make(outputs, dtype=dtype)
    for scale, rotate in itertools.product((2.0**-8, 4.0), (False, True) if channels == 256 else (False,)):
        tensor_scale = torch.tensor(scale, device=x.device)
        codes, scales, _ = quantize_nvfp4(x, tensor_scale, rotate=rotate)
        made, largest = rounding_nvfp4_linear(x, tensor_scale, *weight, bias, rotate=rotate)
        assert made.dtype == dtype and made.is_contiguous()
        assert torch.equal(made, nvfp4_linear(codes, scales, tensor_scale, *weight, bias, dtype))
        assert largest == scales.float().max() and largest.dtype == torch.float32


def test_a_row_that_is_not_finite_is_nan_where_activations_are_rounded(make, stored):
    x, weight = make(3, 64), stored(4, 64)
    tensor_scale = torch.ones((), device=x.device)
    for wrong in (math.inf, math.nan):
        x[1, 20] = wrong
        made, largest = rounding_nvfp4_linear(x, tensor_scale, *weight)
        assert made.isnan().all(1).tolist() == [False, True, False] and largest.isnan()
    made, largest = rounding_nvfp4_linear(make(3, 64), -tensor_scale, *weight)
    assert made.isnan().all() and largest.isnan()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shape", [(0, 3, 16), (4, 0, 16), (3, 5, 0)])
def test_nothing_to_multiply(make, stored, shape):
    rows, outputs, channels = shape
    x, weight, bias = make(rows, channels), stored(outputs, channels), make(outputs)
    expected = bias.expand(rows, outputs)
    assert torch.equal(nvfp4_weight_linear(x, *weight, bias), expected)
    assert torch.equal(nvfp4_linear(*stored(rows, channels), *weight, bias), expected)
    rounded, largest = rounding_nvfp4_linear(x, torch.ones((), device=x.device), *weight, bias)
    assert torch.equal(rounded, expected) and (largest > 0) == (x.numel() > 0)


@pytest.mark.usefixtures("small_tiles")
def test_strided_views(make, stored):
    weight = stored(6, 64)
    expected = dequantize_nvfp4(*weight, torch.float64).T
    for x in (make(9, 128)[::2, :64], make(64, 9).T):
        close(nvfp4_weight_linear(x, *weight), x.double() @ expected, torch.float32)
    codes, scales, tensor_scale = stored(12, 64)
    x = codes[::2], scales[::2], tensor_scale
    close(nvfp4_linear(*x, *weight), dequantize_nvfp4(*x, torch.float64) @ expected, torch.float32)


def test_a_row_that_is_not_finite_is_nan(make, stored):
    values = make(3, 64)
    values[1, 20] = math.inf
    x, weight = quantize_nvfp4(values, torch.ones((), device=values.device)), stored(4, 64)
    assert nvfp4_linear(*x, *weight).isnan().all(1).tolist() == [False, True, False]
    assert nvfp4_linear(*weight, *x).isnan().all(0).tolist() == [False, True, False]
    assert nvfp4_weight_linear(make(5, 64), *x).isnan().all(0).tolist() == [False, True, False]


def test_autocast_shortens_nothing(make, stored):
    x, weight = make(8, 64), stored(8, 64)
    plain = nvfp4_weight_linear(x, *weight)
    with torch.autocast(x.device.type, torch.bfloat16):
        assert torch.equal(nvfp4_weight_linear(x, *weight), plain)


def test_refusals(make, stored):
    x, weight = make(4, 64), stored(6, 64)
    with pytest.raises(ValueError, match="takes a weight of 32 channels, as x has: it has 64"):
        nvfp4_weight_linear(x[:, :32], *weight)
    with pytest.raises(ValueError, match="takes a weight of 32 channels, as x has: it has 64"):
        nvfp4_linear(*stored(4, 32), *weight)
    with pytest.raises(ValueError, match="rounding_nvfp4_linear rotates blocks of 128 channels: x has 64"):
        rounding_nvfp4_linear(x, weight[2], *weight, rotate=True)
    with pytest.raises(ValueError, match=r"takes bias of shape \(6,\): it has shape \(5,\)"):
        nvfp4_weight_linear(x, *weight, make(5))
    with pytest.raises(ValueError, match="takes matrices: x has the shape"):
        nvfp4_weight_linear(x[0], *weight)
    with pytest.raises(TypeError, match="takes codes as uint8: it is int8"):
        nvfp4_weight_linear(x, weight[0].view(torch.int8), *weight[1:])
    with pytest.raises(TypeError, match="result is int8"):
        nvfp4_linear(*stored(4, 64), *weight, dtype=torch.int8)


def test_one_graph_when_compiled(make, stored):
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def both(x, weight, bias):
        found = nvfp4_linear(*quantize_nvfp4(x, weight[2]), *weight, bias, x.dtype) + nvfp4_weight_linear(x, *weight)
        return found + rounding_nvfp4_linear(x, torch.ones((), device=x.device), *weight)[0]

    x, weight, bias = make(4, 64), stored(6, 64), make(6)
    expected = nvfp4_linear(*quantize_nvfp4(x, weight[2]), *weight, bias, x.dtype) + nvfp4_weight_linear(x, *weight)
    expected += rounding_nvfp4_linear(x, torch.ones((), device=x.device), *weight)[0]
    assert torch.equal(both(x, weight, bias), expected) and counter.frame_count == 1
