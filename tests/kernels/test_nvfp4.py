"""NVFP4: the encoder against the nearest number, every form bit for bit against the reference, bounds and layouts."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from accel.kernels.int8 import int8_linear, quantize_int8
from accel.kernels.nvfp4 import (
    dequantize_nvfp4,
    nvfp4_to_int8,
    quantize_nvfp4,
    reference,
    swizzle_scales,
    unswizzle_scales,
)
from accel.kernels.rotation import rotate

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}
NUMBERS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)


@pytest.fixture
def make(device, guarded):
    generator = torch.Generator().manual_seed(11)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return guarded(torch.randn(shape, generator=generator).to(dtype).to(device))

    return make


@pytest.fixture
def small_pieces(monkeypatch):
    triton, cpu = (pytest.importorskip(f"accel.kernels.nvfp4.{form}") for form in ("triton", "cpu"))
    monkeypatch.setattr(triton, "PIECE", 128)
    monkeypatch.setattr(cpu, "_PIECE", 1000)


def one(value: float, beside: torch.Tensor) -> torch.Tensor:
    return torch.tensor(value, device=beside.device)


def same(made: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit, where any NaN equals any other."""
    assert made.dtype == expected.dtype and made.shape == expected.shape and made.is_contiguous()
    if made.dtype == torch.float8_e4m3fn:
        made, expected = made.view(torch.uint8), expected.view(torch.uint8)
    made, expected = made.cpu(), expected.cpu()
    if made.is_floating_point():
        assert torch.equal(made.isnan(), expected.isnan())
        made, expected = made.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0)
        assert torch.equal(made.signbit(), expected.signbit())
    assert torch.equal(made, expected)


def unpacked(codes: torch.Tensor) -> torch.Tensor:
    return torch.stack([codes & 15, codes >> 4], dim=2).flatten(1)


def nearest(values: torch.Tensor) -> torch.Tensor:
    """The code whose number is nearest in float64, the even one of two: an oracle without thresholds."""
    distances = (values.double().abs().clamp(max=6.0)[..., None] - NUMBERS).abs()
    ties = distances == distances.amin(-1, keepdim=True)
    codes = (ties * torch.tensor([2, 1] * 4)).argmax(-1)
    return (codes + 8 * values.signbit()).to(torch.uint8)


def encoded(values: torch.Tensor, device: str) -> torch.Tensor:
    """The codes that the operation gives to numbers of at most 6, which it divides by 1: a 6 leads every group."""
    groups = torch.nn.functional.pad(values.float(), (0, -values.numel() % 15)).view(-1, 15)
    groups = torch.nn.functional.pad(groups, (1, 0), value=6.0)
    width = 256
    rows = torch.nn.functional.pad(groups.flatten(), (0, -groups.numel() % width)).view(-1, width)
    codes, _, _ = quantize_nvfp4(rows.to(device), torch.tensor(1.0, device=device))
    return unpacked(codes.cpu()).flatten()[: groups.numel()].view(-1, 16)[:, 1:].flatten()[: values.numel()]


def test_every_bfloat16_is_rounded_to_nearest_even(device):
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    inside = patterns[patterns.isfinite() & (patterns.abs() <= 6)]
    assert torch.equal(encoded(inside, device), nearest(inside))
    finite = patterns[patterns.isfinite()]
    assert finite.numel() == (1 << 16) - 256
    assert torch.equal(reference.encode(finite.float()), nearest(finite))


def test_ties_and_their_neighbours(device):
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    wanted = torch.tensor([0, 2, 2, 4, 4, 6, 6], dtype=torch.uint8)
    assert torch.equal(encoded(ties, device), wanted) and torch.equal(encoded(-ties, device), wanted + 8)
    for towards in (0.0, 6.0):
        beside = torch.nextafter(ties, torch.full_like(ties, towards))
        assert torch.equal(encoded(beside, device), nearest(beside))


def test_group_scales_are_rounded_as_torch_rounds(device):
    """Every E4M3, the middle of every two, and numbers beside the middles."""
    exact = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (exact[1:] + exact[:-1]) / 2
    beside = [torch.nextafter(middles, torch.full_like(middles, towards)) for towards in (0.0, 500.0)]
    wanted = torch.cat([exact, middles, *beside, torch.tensor([449.0, 464.0, 465.0, 1e9])])
    x = torch.zeros(wanted.numel(), 16)
    # Times 6 and divided by it again, a float32 may come back as its neighbour: the quotient decides.
    x[:, 5] = wanted * 6
    _, scales, _ = quantize_nvfp4(x.to(device), torch.tensor(1.0, device=device))
    same(scales[:, 0], (x[:, 5] / 6).clamp(max=448).to(torch.float8_e4m3fn))


@pytest.mark.usefixtures("poisoned_memory", "small_pieces")
@pytest.mark.parametrize("shape", [(0, 32), (3, 0), (1, 16), (17, 48), (33, 272)])
@pytest.mark.parametrize("by_error", [False, True])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_form_quantizes_to_the_same_bits(make, dtype, by_error, shape):
    x = make(*shape, dtype=dtype) * make(1, shape[1]).exp().to(dtype)
    for given in (None, one(2.0**-7, x), one(0.013, x)):
        codes, scales, tensor_scale = quantize_nvfp4(x, given, by_error=by_error)
        assert scales.device == codes.device == tensor_scale.device == x.device
        whole = reference.tensor_scale(x.cpu(), by_error) if given is None else given
        same(tensor_scale, whole)
        expected = reference.quantize_nvfp4(x.cpu(), whole.cpu(), by_error, False)
        same(codes, expected[0])
        same(scales, expected[1])


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("by_error", [False, True])
def test_the_rotation_is_fused(make, by_error):
    x = make(18, 256, dtype=torch.bfloat16)
    whole = one(2.0**-6, x)
    fused = quantize_nvfp4(x, whole, by_error=by_error, rotate=True)
    apart = quantize_nvfp4(rotate(x, dtype=torch.float32), whole, by_error=by_error)
    for made, expected in zip(fused, apart, strict=True):
        same(made, expected)


@pytest.mark.usefixtures("poisoned_memory", "small_pieces")
@pytest.mark.parametrize("shape", [(0, 32), (3, 0), (1, 16), (17, 48), (33, 272)])
def test_every_form_goes_back_to_the_same_bits(make, shape):
    parts = quantize_nvfp4(make(*shape), by_error=True)
    on_cpu = [part.cpu() for part in parts]
    for dtype in DTYPES.values():
        same(dequantize_nvfp4(*parts, dtype), reference.dequantize_nvfp4(*on_cpu, dtype))
    for made, expected in zip(nvfp4_to_int8(*parts), reference.nvfp4_to_int8(*on_cpu), strict=True):
        same(made, expected)


def test_every_byte_and_every_scale_is_decoded(device):
    codes = torch.arange(256, dtype=torch.uint8).view(32, 8)
    scales = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes, repeated = codes.repeat(127, 1), scales.view(torch.uint8).repeat_interleave(32).view(-1, 1)
    made = dequantize_nvfp4(
        codes.to(device), repeated.view(torch.float8_e4m3fn).to(device), torch.tensor(1.0, device=device)
    )
    numbers = torch.cat([NUMBERS, -NUMBERS])[unpacked(codes).long()]
    assert torch.equal(made.cpu().double(), numbers * repeated.view(torch.float8_e4m3fn).double())
    # Without the tensor scale, 16 bits hold every number exactly.
    assert torch.equal(made, made.bfloat16().float()) and torch.equal(made, made.half().float())


def test_the_even_channel_is_in_the_low_half(device):
    x = torch.tensor([[6.0, -0.5] + 14 * [0.0]], device=device)
    codes, scales, _ = quantize_nvfp4(x, one(1.0, x))
    assert codes.tolist() == [[7 | 9 << 4, 0, 0, 0, 0, 0, 0, 0]] and scales.float().item() == 1
    assert torch.equal(codes.view(torch.float4_e2m1fn_x2).view(torch.uint8), codes)


@pytest.mark.parametrize("by_error", [False, True])
def test_bound(make, by_error):
    """3/17 of the group's largest magnitude where its scale is a normal number, itself where it is not."""
    x = make(200, 160) * (4 * make(200, 1)).exp()
    parts = quantize_nvfp4(x, by_error=by_error)
    errors = (dequantize_nvfp4(*parts) - x).abs().unflatten(1, (-1, 16)).amax(2)
    largest = x.abs().unflatten(1, (-1, 16)).amax(2)
    normal = largest >= 6 * 2.0**-6 * parts[2]
    assert normal.any() and not normal.all()
    assert (errors <= torch.where(normal, 3 / 17 * (1 + 1e-5), 1.0) * largest).all()


def test_a_choice_by_error_loses_less(make):
    x = make(64, 512)
    whole = one(x.abs().max().item() / (6 * 256), x)
    plain, chosen = (dequantize_nvfp4(*quantize_nvfp4(x, whole, by_error=choice)) for choice in (False, True))
    groups = [(made - x).square().unflatten(1, (-1, 16)).sum(2) for made in (chosen, plain)]
    assert (groups[0] <= groups[1] * (1 + 1e-4)).all()
    assert groups[0].sum().sqrt() / x.norm() == pytest.approx(0.087, abs=0.002)
    assert groups[1].sum().sqrt() / x.norm() == pytest.approx(0.095, abs=0.002)


def test_quantizing_again_changes_nothing(make):
    x = make(60, 320) * make(1, 320).exp()
    codes, scales, whole = quantize_nvfp4(x)
    # Groups whose scale is a normal number: below, the largest magnitude may have got a code under 6.
    again_codes, again_scales, _ = quantize_nvfp4(dequantize_nvfp4(codes, scales, whole), whole)
    assert (scales.float() >= 2.0**-6).all()
    same(again_codes, codes)
    same(again_scales, scales)
    # With a choice, one number can be written in two ways: the numbers stay.
    made = dequantize_nvfp4(*(chosen := quantize_nvfp4(x, by_error=True)))
    same(dequantize_nvfp4(*quantize_nvfp4(made, chosen[2], by_error=True)), made)


def test_rows_do_not_depend_on_each_other_with_a_given_scale(make):
    x = make(21, 96)
    whole = one(2.0**-8, x)
    halves = [quantize_nvfp4(part, whole) for part in (x[:9], x[9:])]
    for together, *apart in zip(quantize_nvfp4(x, whole), *halves, strict=True):
        if together.ndim:
            same(together, torch.cat([part.view(torch.uint8) for part in apart]).view(together.dtype))


def test_zeros_and_extremes(device):
    x = torch.zeros(4, 32, device=device)
    codes, scales, whole = quantize_nvfp4(x)
    assert not codes.any() and not scales.float().any() and whole == 1
    # A zero group of a tensor that has others, a group that is lost beside them, and numbers that stop at the end.
    x[1, :16], x[2, 5], x[2, 20] = 1.0, 1e-9, -1e-9
    assert dequantize_nvfp4(*quantize_nvfp4(x))[0].tolist() == 32 * [0.0]
    assert not dequantize_nvfp4(*quantize_nvfp4(x))[2].any()
    x[3] = -1e30
    assert dequantize_nvfp4(*quantize_nvfp4(x, one(1.0, x)))[3].tolist() == 32 * [-6.0 * 448]
    tiny = torch.full((1, 16), 1e-20, device=device)
    assert dequantize_nvfp4(*quantize_nvfp4(tiny)).flatten().tolist() == pytest.approx(16 * [1e-20])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("by_error", [False, True])
def test_what_is_not_finite_makes_its_group_nan(device, value, by_error):
    x = torch.ones(3, 48, device=device)
    x[1, 20] = value
    codes, scales, whole = quantize_nvfp4(x, one(0.25, x), by_error=by_error)
    made = dequantize_nvfp4(codes, scales, whole)
    assert made[1, 16:32].isnan().all() and made.isnan().sum() == 16
    integers, row_scales = nvfp4_to_int8(codes, scales, whole)
    assert row_scales.isnan().tolist() == [False, True, False] and not integers[1].any()
    assert dequantize_nvfp4(*quantize_nvfp4(x, by_error=by_error)).isnan().all()


@pytest.mark.parametrize("scale", [math.nan, math.inf, 0.0, -1.0])
def test_a_tensor_scale_that_is_none_makes_all_nan(device, scale):
    x = torch.ones(2, 32, device=device)
    assert quantize_nvfp4(x, one(scale, x))[1].isnan().all()


def test_strided_matrices(make):
    x = make(8, 300)
    for view in (x[:, 20:276], x[::3, :256], make(256, 5).T):
        for part, whole in zip(quantize_nvfp4(view), quantize_nvfp4(view.contiguous()), strict=True):
            same(part, whole)
    codes, scales, whole = quantize_nvfp4(make(8, 96))
    cut = codes[::2, 8:32], scales[::2, 1:4]
    same(dequantize_nvfp4(*cut, whole), dequantize_nvfp4(*(part.clone() for part in cut), whole))
    same(nvfp4_to_int8(*cut, whole)[0], nvfp4_to_int8(*(part.clone() for part in cut), whole)[0])


@pytest.mark.parametrize("by_error", [False, True])
def test_an_int8_weight_is_within_half_a_scale(make, by_error):
    weight = make(24, 320) * make(1, 320).exp()
    parts = quantize_nvfp4(weight, by_error=by_error)
    integers, scales = nvfp4_to_int8(*parts)
    numbers = dequantize_nvfp4(*parts)
    # A quotient of up to 127 is off by 2⁻¹⁶ of a half at most.
    errors = (integers.double() * scales[:, None] - numbers).abs() / scales[:, None]
    assert errors.max() <= 0.5 * (1 + 1e-4)
    torch.testing.assert_close(scales * 127, numbers.abs().amax(1), rtol=1e-6, atol=0)
    assert (integers.abs().amax(1) == 127).all()


def test_errors_of_products():
    """Gaussian numbers: 4 bits on both sides, and an NVFP4 weight with INT8 activations."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 1024, generator=generator) for rows in (256, 192))
    exact = x.double() @ weight.double().T
    stored = quantize_nvfp4(weight)
    four = dequantize_nvfp4(*quantize_nvfp4(x, torch.tensor(2.0**-9))) @ dequantize_nvfp4(*stored).T
    mixed = int8_linear(*quantize_int8(x), *nvfp4_to_int8(*stored))
    errors = [((made - exact).norm() / exact.norm()).item() for made in (four, mixed)]
    assert errors == pytest.approx([0.1345, 0.0963], abs=0.003)


@pytest.mark.interpreter
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("shape", "rotate"), [((1, 16), False), ((257, 208), False), ((130, 256), True)])
def test_scales_are_written_into_their_tiles_by_the_quantizer(shape, rotate):
    from accel.kernels.nvfp4 import triton

    x, scale = torch.randn(shape, generator=torch.Generator().manual_seed(4)), torch.tensor(0.5)
    codes, scales = reference.quantize_nvfp4(x, scale, False, rotate)
    made, tiles = triton.quantize_nvfp4(x, scale, False, rotate, swizzled=True)
    same(made, codes)
    same(tiles, swizzle_scales(scales))


@pytest.mark.parametrize(("rows", "groups"), [(128, 4), (200, 13), (300, 120), (1, 1), (0, 4)])
def test_swizzled_scales(rows, groups):
    scales = torch.randint(1, 127, (rows, groups), dtype=torch.uint8).view(torch.float8_e4m3fn)
    tiles = swizzle_scales(scales)
    across = math.ceil(groups / 4)
    assert tiles.dtype == scales.dtype and tiles.shape == (math.ceil(rows / 128) * across * 512,)
    same(unswizzle_scales(tiles, rows, groups), scales)
    row, group = torch.arange(rows)[:, None], torch.arange(groups)
    at = (row // 128 * across + group // 4) * 512 + row % 32 * 16 + row % 128 // 32 * 4 + group % 4
    plain = tiles.view(torch.uint8).clone()
    assert torch.equal(plain[at], scales.view(torch.uint8))
    plain[at] = 0
    assert not plain.any()


def test_one_graph_when_compiled(make):
    counter = CompileCounterWithBackend("aot_eager")
    x = make(6, 128)
    whole = one(0.125, x)

    def there_and_back(x):
        weight = quantize_nvfp4(x * 3)
        return dequantize_nvfp4(*quantize_nvfp4(x, whole, rotate=True)), *nvfp4_to_int8(*weight)

    torch._dynamo.reset()
    compiled = torch.compile(there_and_back, fullgraph=True, backend=counter)(x)
    assert counter.frame_count == 1
    for made, expected in zip(compiled, there_and_back(x), strict=True):
        same(made, expected)


def test_registration(make):
    x = make(3, 128)
    torch.library.opcheck(torch.ops.accel.quantize_nvfp4.default, (x, one(1.0, x), True, True))
    torch.library.opcheck(torch.ops.accel.quantize_nvfp4.default, (x, None, False, False))
    parts = quantize_nvfp4(x)
    # The check of the schema changes its arguments, for which torch has no float8.
    without_schema = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for operation, arguments in (
        (torch.ops.accel.dequantize_nvfp4.default, (*parts, torch.float16)),
        (torch.ops.accel.nvfp4_to_int8.default, parts),
    ):
        torch.library.opcheck(operation, arguments, test_utils=without_schema)


CODES, SCALES, WHOLE = torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, 2).to(torch.float8_e4m3fn), torch.ones(())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: quantize_nvfp4(torch.ones(2, 40)),
            ValueError,
            "^quantize_nvfp4 takes channels in groups of 16: x has 40; leave it as it is$",
        ),
        (
            lambda: quantize_nvfp4(torch.ones(2, 128), rotate=True),
            ValueError,
            r"^quantize_nvfp4 rotates with a tensor scale given: give one, or call rotate\(x\) first$",
        ),
        (
            lambda: quantize_nvfp4(torch.ones(2, 32), WHOLE, rotate=True),
            ValueError,
            "^quantize_nvfp4 rotates blocks of 128 channels: x has 32; leave it unrotated$",
        ),
        (
            lambda: quantize_nvfp4(torch.ones(2, 32), torch.ones(1)),
            ValueError,
            r"^quantize_nvfp4 takes tensor_scale of shape \(\): it has shape \(1,\)$",
        ),
        (
            lambda: quantize_nvfp4(torch.ones(2, 32), WHOLE.bfloat16()),
            TypeError,
            "^quantize_nvfp4 takes tensor_scale as float32: it is bfloat16$",
        ),
        (
            lambda: quantize_nvfp4(torch.ones(2, 32), WHOLE.to("meta")),
            ValueError,
            "^quantize_nvfp4 takes tensors of one device: x is on cpu, tensor_scale is on meta$",
        ),
        (
            lambda: dequantize_nvfp4(CODES, SCALES[:, :1], WHOLE),
            ValueError,
            r"^dequantize_nvfp4 takes scales of shape \(2, 2\): it has shape \(2, 1\)$",
        ),
        (
            lambda: nvfp4_to_int8(CODES.int(), SCALES, WHOLE),
            TypeError,
            "^nvfp4_to_int8 takes codes as uint8: it is int32$",
        ),
        (
            lambda: nvfp4_to_int8(CODES[:, :10], SCALES, WHOLE),
            ValueError,
            "^nvfp4_to_int8 takes 8 bytes of codes a group: a row has 10$",
        ),
        (
            lambda: swizzle_scales(torch.ones(2, 4)),
            TypeError,
            "^swizzle_scales takes float8_e4m3fn or uint8 scales: these are float32$",
        ),
        (
            lambda: unswizzle_scales(torch.zeros(512, dtype=torch.uint8), 129, 4),
            ValueError,
            r"^unswizzle_scales takes tiles of shape \(1024,\): it has shape \(512,\)$",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(call, error, message):
    with pytest.raises(error, match=message):
        call()
