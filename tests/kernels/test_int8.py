"""quantize_int8 and int8_linear: every form bit for bit against the reference, and against sums in int64."""

import importlib
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from accel.kernels.int8 import int8_linear, quantize_int8, reference
from accel.kernels.int8.tiles import TILES, Tile
from accel.kernels.rotation import rotate

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}


@pytest.fixture
def make(device, guarded):
    generator = torch.Generator().manual_seed(5)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return guarded(torch.randn(shape, generator=generator).to(dtype).to(device))

    return make


@pytest.fixture
def integers(device):
    generator = torch.Generator().manual_seed(6)
    return lambda *shape: torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8).to(device)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles and pieces so small that tiny tensors have several of them and a ragged last one."""
    triton = pytest.importorskip("accel.kernels.int8.triton")
    monkeypatch.setitem(TILES, "int8", {80: Tile(16, 16, 32, together=2)})
    monkeypatch.setattr(triton, "PIECE", 256)
    cpu = importlib.import_module("accel.kernels.int8.cpu")
    monkeypatch.setattr(cpu, "_ROWS", 16)
    monkeypatch.setattr(cpu, "_PIECE", 1000)


def same(made, expected):
    made = made.cpu()
    assert made.dtype == expected.dtype
    torch.testing.assert_close(made, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("poisoned_memory", "small_tiles")
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (1, 1), (5, 37), (9, 256), (2, 700)])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_form_quantizes_to_the_same_bits(make, dtype, shape):
    x = make(*shape, dtype=dtype)
    integers, scales = quantize_int8(x)
    assert integers.is_contiguous() and scales.is_contiguous() and scales.device == x.device
    expected = reference.quantize_int8(x.cpu(), False)
    same(integers, expected[0])
    same(scales, expected[1])


@pytest.mark.usefixtures("poisoned_memory", "small_tiles")
@pytest.mark.parametrize("channels", [128, 256, 640])
def test_the_rotation_is_fused(make, channels):
    x = make(5, channels, dtype=torch.bfloat16)
    for fused, apart in zip(quantize_int8(x, rotate=True), quantize_int8(rotate(x, dtype=torch.float32)), strict=True):
        same(fused, apart.cpu())


def test_bound_and_range(make):
    x = make(40, 300) * make(1, 300).exp()
    integers, scales = quantize_int8(x)
    largest = x.abs().amax(1, keepdim=True)
    assert torch.equal(integers.abs().amax(1), torch.full_like(scales, 127, dtype=torch.int8))
    assert ((integers * scales[:, None] - x).abs() <= largest / 254 * (1 + 1e-4)).all()


def test_ties_go_to_the_even_integer(device):
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 125.5, 126.5]], device=device)
    integers, scales = quantize_int8(x)
    assert scales.item() == 1 and integers.tolist() == [[127, 0, 2, 2, 0, -2, 126, 126]]


def test_quantizing_again_gives_the_same_integers(make):
    integers, scales = quantize_int8(make(12, 77))
    assert torch.equal(quantize_int8(integers * scales[:, None])[0], integers)


def test_zeros_and_extremes(device):
    x = torch.tensor([[0.0, 0.0], [1e-38, -1e-38], [3e38, -1e38]], device=device)
    integers, scales = quantize_int8(x)
    assert integers.tolist() == [[0, 0], [0, 0], [127, -42]]
    assert scales.isfinite().all() and (scales > 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_nan(device, value):
    x = torch.ones(3, 5, device=device)
    x[1, 3] = value
    integers, scales = quantize_int8(x)
    assert scales.isnan().tolist() == [False, True, False]
    assert integers.tolist() == [[127] * 5, [0] * 5, [127] * 5]
    product = int8_linear(integers, scales, integers, scales)
    assert product.isnan().tolist() == [[False, True, False], [True] * 3, [False, True, False]]


@pytest.mark.usefixtures("poisoned_memory", "small_tiles")
@pytest.mark.parametrize(
    "sizes", [(0, 3, 8), (4, 0, 8), (3, 5, 0), (1, 1, 1), (33, 35, 77), (16, 32, 64), (70, 17, 96)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_every_form_multiplies_to_the_same_bits(make, integers, dtype, sizes):
    rows, outputs, channels = sizes
    x, weight = integers(rows, channels), integers(outputs, channels)
    x_scale, weight_scale = make(rows).abs(), make(outputs).abs()
    for bias in (None, make(outputs, dtype=dtype)):
        result = int8_linear(x, x_scale, weight, weight_scale, bias, dtype)
        assert result.is_contiguous() and result.device == x.device
        arguments = (None if tensor is None else tensor.cpu() for tensor in (x, x_scale, weight, weight_scale, bias))
        same(result, reference.int8_linear(*arguments, dtype))


def test_sums_are_exact(device, integers):
    """With scales of 1 and channels few enough for float32 to hold the sums, the result is the integers."""
    x, weight = integers(9, 1000), integers(7, 1000)
    ones = torch.ones(9, device=device)
    exact = x.cpu().long() @ weight.cpu().long().T
    assert torch.equal(int8_linear(x, ones, weight, ones[:7]).cpu().double(), exact.double())


def test_the_largest_sum_fits(device):
    largest = torch.full((1, 133_144), 127, dtype=torch.int8, device=device)
    one = torch.ones(1, device=device)
    assert int8_linear(largest, one, -largest, one).item() == float(torch.tensor(-127 * 127 * 133_144).float())


LIMITED = """
import torch
from accel.kernels.forms import use
from accel.kernels.int8 import int8_linear
from accel.kernels.int8.cpu import has_integer_product
from accel.kernels.quantized_linear import emulation

generator = torch.Generator().manual_seed(3)
for rows, outputs, channels in ((3, 5, 0), (1, 1, 1), (600, 35, 77), (5, 6, 1024), (4, 7, 5000)):
    x, weight = (torch.randint(-127, 128, (n, channels), generator=generator).char() for n in (rows, outputs))
    x[0], weight[0], weight[-1] = 127, 127, -127
    given = x, torch.rand(rows, generator=generator), weight, torch.rand(outputs, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        made = int8_linear(*given)
    with use("reference"):
        assert torch.equal(made, int8_linear(*given)), (rows, outputs, channels)
print(has_integer_product(), emulation("int8", "int8", torch.device("cpu")))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the limit is one on x86 alone")
def test_without_integer_instructions_the_product_is_exact_and_said_to_be_slow():
    """oneDNN limited to AVX2 saturates in 16 bits, as it does on a CPU without VNNI."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", LIMITED]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    said = "INT8 has no fast instructions on this CPU: its products are made of float32 ones"
    assert (done.stdout.strip(), done.returncode) == (f"False {said}", 0), done.stderr


def test_strided_matrices(make, integers):
    x, weight, scale = integers(8, 100), integers(100, 6), make(8).abs()
    wide, narrow = x[::2, 30:70], weight[30:70].T
    made = int8_linear(wide, scale[::2], narrow, scale[:6])
    assert torch.equal(made, int8_linear(wide.contiguous(), scale[::2].clone(), narrow.contiguous(), scale[:6]))
    strided = make(10, 100)
    for view in (strided[:, 20:57], strided[::3], strided.T):
        for part, whole in zip(quantize_int8(view), quantize_int8(view.contiguous()), strict=True):
            assert torch.equal(part, whole)


def test_error_of_a_product():
    """What the formats lose on Gaussian numbers: 1.2 per cent when both sides are INT8."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 1024, generator=generator) for rows in (256, 192))
    exact = x.double() @ weight.double().T
    made = int8_linear(*quantize_int8(x), *quantize_int8(weight))
    error = ((made - exact).norm() / exact.norm()).item()
    assert error == pytest.approx(0.0117, abs=0.001)


def test_one_graph_when_compiled(make, integers):
    counter = CompileCounterWithBackend("aot_eager")
    weight, scale, x = integers(6, 20), make(6).abs(), make(4, 20)

    def linear(x):
        return int8_linear(*quantize_int8(x * 2), weight, scale)

    torch._dynamo.reset()
    assert torch.equal(torch.compile(linear, fullgraph=True, backend=counter)(x), linear(x))
    assert counter.frame_count == 1


def test_registration(make, integers):
    torch.library.opcheck(torch.ops.accel.quantize_int8.default, (make(3, 128), True))
    arguments = (integers(3, 9), make(3), integers(5, 9), make(5), make(5), torch.bfloat16)
    torch.library.opcheck(torch.ops.accel.int8_linear.default, arguments)


INTS, ONES = torch.ones(2, 8, dtype=torch.int8), torch.ones(2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: quantize_int8(torch.ones(2, 3), rotate=True),
            ValueError,
            "^quantize_int8 rotates blocks of 128 channels: x has 3; leave it unrotated$",
        ),
        (
            lambda: quantize_int8(torch.ones(2, 3, 4)),
            ValueError,
            r"^quantize_int8 takes matrices: x has the shape \(2, 3, 4\)$",
        ),
        (
            lambda: int8_linear(INTS, ONES, INTS[:, :4], ONES),
            ValueError,
            r"^int8_linear takes weight of shape \(2, 8\): it has shape \(2, 4\)$",
        ),
        (
            lambda: int8_linear(INTS, ONES, INTS, torch.ones(3)),
            ValueError,
            r"^int8_linear takes weight_scale of shape \(2,\): it has shape \(3,\)$",
        ),
        (
            lambda: int8_linear(INTS.float(), ONES, INTS, ONES),
            TypeError,
            "^int8_linear takes x as int8: it is float32$",
        ),
        (
            lambda: int8_linear(INTS, ONES.half(), INTS, ONES),
            TypeError,
            "^int8_linear takes x_scale as float32: it is float16$",
        ),
        (
            lambda: int8_linear(INTS, ONES, INTS, ONES.to("meta")),
            ValueError,
            "^int8_linear takes tensors of one device: x is on cpu, weight_scale is on meta$",
        ),
        (
            lambda: int8_linear(*[INTS.new_zeros(1, 133_145), ONES[:1]] * 2),
            ValueError,
            "^int8_linear takes at most 133144 channels: x has 133145$",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(call, error, message):
    with pytest.raises(error, match=message):
        call()
