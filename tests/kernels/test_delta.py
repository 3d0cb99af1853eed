"""compute_delta, update_delta, apply_delta: every form against the reference bit for bit, and against float64 sums."""

import importlib
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from accel.kernels.delta import apply_delta, compute_delta, delta_statistics, reference, update_delta
from accel.kernels.forms import use

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}
# Every sum is accumulated in float32 from values that are already rounded, so half types need no wider bound.
BOUND = 1e-5

# How three tensors of one shape are cut from `make`, which returns contiguous tensors of the shape given.
LAYOUTS = {
    "empty": lambda make: [make(0, 8) for _ in range(3)],
    "scalar": lambda make: [make() for _ in range(3)],
    "one": lambda make: [make(1) for _ in range(3)],
    "odd": lambda make: [make(3, 343) for _ in range(3)],
    "one-block": lambda make: [make(1024) for _ in range(3)],
    "ragged": lambda make: [make(1, 25, 83) for _ in range(3)],
    "tokens-of-a-sequence": lambda make: [make(2, 30, 96)[:, 11:], make(2, 19, 96), make(2, 30, 96)[:, :19]],
    "channels-of-a-row": lambda make: [make(2, 20, 64)[..., 5:38] for _ in range(3)],
    "transposed": lambda make: [
        make(2, 13, 40).transpose(1, 2),
        make(2, 40, 13),
        make(40, 2, 13).transpose(0, 1),
    ],
    "every-other": lambda make: [make(3000)[::2], make(1500), make(3000)[1::2]],
    "expanded": lambda make: [
        make(1, 9, 130).expand(2, 9, 130),
        make(2, 9, 130),
        make(2, 9, 1).expand(2, 9, 130),
    ],
}


@pytest.fixture
def make(device, guarded):
    generator = torch.Generator().manual_seed(7)

    def make(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
        return guarded((torch.randn(shape, generator=generator) * scale).to(dtype).to(device))

    return make


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal values, signs of zeros and dtype; any NaN equals any other."""
    left, right = left.cpu(), right.cpu()
    if left.dtype != right.dtype or left.shape != right.shape or not torch.equal(left.isnan(), right.isnan()):
        return False
    return torch.equal(left.nan_to_num(), right.nan_to_num()) and torch.equal(
        left.nan_to_num().signbit(), right.nan_to_num().signbit()
    )


def exact_stats(delta, input, predicted=None, previous=None):
    wide = [None if tensor is None else tensor.cpu().double() for tensor in (delta, input, predicted, previous)]
    return reference.statistics(*wide)


def assert_near(stats, expected):
    assert stats.dtype == torch.float32 and stats.shape == (6,)
    for value, wanted in zip(stats.tolist(), expected.tolist(), strict=True):
        assert math.isclose(value, wanted, rel_tol=BOUND, abs_tol=0.0), (stats, expected)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_delta_and_its_statistics(make, dtype, layout):
    output, input, previous = LAYOUTS[layout](lambda *shape: make(*shape, dtype=dtype))
    expected, _ = reference.compute_delta(output.cpu(), input.cpu(), None)
    for stored in (None, previous):
        delta, stats = compute_delta(output, input, stored)
        assert delta.is_contiguous() and delta.device == stats.device == output.device
        assert same_bits(delta, expected)
        assert_near(stats, exact_stats(delta, input, stored, stored))
    alone = delta_statistics(output, input)
    assert alone.device == output.device
    assert_near(alone, exact_stats(delta, input))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "dtypes",
    ["f32-f32", "f16-f16", "bf16-bf16", "f64-f64", "f32-bf16", "bf16-f32", "f16-bf16", "f64-f16"],
)
def test_applied_delta(make, dtypes, layout):
    base, change = (DTYPES[name] for name in dtypes.split("-"))
    input, delta, _ = LAYOUTS[layout](make)
    input, delta = input.to(base), delta.to(change)
    output = apply_delta(input, delta)
    assert output.is_contiguous() and output.device == input.device
    assert same_bits(output, reference.apply_delta(input.cpu(), delta.cpu(), None, 0))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtypes", ["f32-f32", "f16-f16", "bf16-bf16", "f64-f64", "f32-bf16", "bf16-f32"])
def test_a_delta_that_is_continued_along_a_line(make, dtypes, layout):
    """The new delta and slope bit for bit; what was mispredicted, and the sum, against the formula in float64."""
    of_streams, held = (DTYPES[name] for name in dtypes.split("-"))
    output, input, old = (tensor.to(of_streams) for tensor in LAYOUTS[layout](make))
    old = old.to(held)
    slope = (0.1 * output).to(held)
    for known, gap in ((None, 1), (slope, 1), (slope, 3)):
        delta, new_slope, stats = update_delta(output, input, old, known, gap)
        for result in (delta, new_slope):
            assert result.is_contiguous() and result.device == output.device and result.dtype == held
        there = [None if tensor is None else tensor.cpu() for tensor in (output, input, old, known)]
        expected = reference.update_delta(*there, gap)
        assert same_bits(delta, expected[0]) and same_bits(new_slope, expected[1])
        # The prediction is rounded as the operation rounds it, in the wider dtype.
        wide = torch.promote_types(torch.promote_types(of_streams, held), torch.float32)
        predicted = old.to(wide) if known is None else old.to(wide) + gap * known.to(wide)
        assert_near(stats, exact_stats(delta, input, predicted, old))

        for distance in (gap, 0.7 * gap):
            continued = apply_delta(input, old, known, distance)
            assert continued.is_contiguous()
            exactly = torch.tensor(distance, dtype=torch.float32).item()
            assert same_bits(continued, reference.apply_delta(*there[1:], exactly))


def test_a_line_is_continued_exactly(make):
    """Deltas that change by the same amount in each step leave nothing mispredicted."""
    base, per_step, hidden = (make(3, 40).round() for _ in range(3))
    first, _ = compute_delta(hidden + base, hidden)
    second, slope, stats = update_delta(hidden + base + 2 * per_step, hidden, first, None, 2)
    assert torch.equal(slope, per_step)
    for missed in (stats[2], stats[5]):
        assert math.isclose(missed.item(), (2 * per_step).square().sum().item(), rel_tol=BOUND)
    third, slope, stats = update_delta(hidden + base + 5 * per_step, hidden, second, slope, 3)
    assert torch.equal(slope, per_step) and stats[2] == 0
    assert math.isclose(stats[5].item(), (3 * per_step).square().sum().item(), rel_tol=BOUND)
    assert torch.equal(apply_delta(hidden, third, slope, 4), hidden + base + 9 * per_step)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_what_was_mispredicted(device, value):
    ones = torch.ones(3, device=device)
    bad = torch.tensor([1.0, value, 3.0], device=device)
    for arguments in ((bad, ones, ones, ones), (ones, ones, bad, ones), (ones, ones, ones, bad)):
        assert not update_delta(*arguments, 2)[2][2].isfinite()
    assert update_delta(bad, ones, ones, None, 1)[2][4] == 1


def test_the_cpu_form_in_float32_is_plain_addition():
    input, delta = torch.randn(2, 5, 7, 33)
    with use("cpu"):
        assert same_bits(apply_delta(input, delta), input + delta)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_sums_that_are_made_in_pieces(make, monkeypatch, dtype):
    monkeypatch.setattr(importlib.import_module("accel.kernels.delta.cpu"), "_PIECE", 3000)
    monkeypatch.setattr(importlib.import_module("accel.kernels.delta.triton"), "MAX_PROGRAMS", 3)
    output, input, previous = (make(2, 77, 90, dtype=dtype) for _ in range(3))
    delta, stats = compute_delta(output, input, previous)
    assert same_bits(delta, reference.compute_delta(output.cpu(), input.cpu(), None)[0])
    assert_near(stats, exact_stats(delta, input, previous, previous))
    assert_near(delta_statistics(output, input), exact_stats(delta, input))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_statistics_alone_make_nothing_as_large_as_a_delta(dtype):
    """On a CPU, where a piece is far smaller than these tensors; compute_delta shows that the watch sees one."""
    output, input = torch.randn(2, 8, 1024, 1024).to(dtype)
    largest = []
    for call in (delta_statistics, compute_delta):
        with use("cpu"), torch.profiler.profile(profile_memory=True) as profile:
            call(output, input)
        largest.append(max(event.cpu_memory_usage for event in profile.events()))
    assert largest[0] < output.nbytes < largest[1] + 1


def test_a_long_sum_stays_accurate_on_a_cpu():
    input = torch.rand(3_000_017)
    with use("cpu"):
        delta, stats = compute_delta(2 * input, input)
    assert_near(stats, exact_stats(delta, input))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("output", "input", "largest", "count"),
    [
        ([1.0, math.nan, 3.0], [1.0, 1.0, 1.0], math.nan, 1),
        ([1.0, math.inf, 3.0], [1.0, 1.0, 9.0], math.inf, 1),
        ([-math.inf, math.inf, math.nan, 2.0], [1.0, 1.0, 0.0, 1.0], math.nan, 3),
        ([math.inf, 2.0], [math.inf, 1.0], math.nan, 1),
        ([2.0, 0.0], [math.nan, 1.0], math.nan, 1),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_what_is_not_finite_is_counted(device, dtype, output, input, largest, count):
    output, input = (torch.tensor(values, dtype=dtype, device=device) for values in (output, input))
    delta, stats = compute_delta(output, input, torch.zeros_like(input))
    assert same_bits(delta, reference.compute_delta(output.cpu(), input.cpu(), None)[0])
    assert stats[4] == count and not stats[0].isfinite()
    assert stats[3] == largest or (stats[3].isnan() and math.isnan(largest))
    assert same_bits(delta_statistics(output, input)[3:5], stats[3:5])


def test_a_difference_that_overflows_its_dtype_is_not_finite(device):
    delta, stats = compute_delta(
        torch.tensor([60000.0, 1.0], dtype=torch.float16, device=device),
        torch.tensor([-60000.0, 1.0], dtype=torch.float16, device=device),
    )
    assert delta.tolist() == [math.inf, 0.0]
    assert stats[3:5].tolist() == [math.inf, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_extreme_values(make, dtype):
    """Squares beyond float32 make a sum infinite; the delta is finite, and its largest value is right."""
    output, input = make(2050, dtype=dtype, scale=1e30), make(2050, dtype=dtype, scale=1e30)
    delta, stats = compute_delta(output, input)
    assert stats[:2].tolist() == [math.inf, math.inf]
    assert stats[3] == delta.abs().max().float() and stats[4] == 0

    output, input = make(2050, dtype=dtype, scale=1e-15), make(2050, dtype=dtype, scale=1e-15)
    delta, stats = compute_delta(output, input)
    assert_near(stats, exact_stats(delta, input))


def test_the_same_call_gives_the_same_bits(make):
    output, input, previous = (make(2, 50, 96, dtype=torch.float16) for _ in range(3))
    first = compute_delta(output, input, previous)
    # Copies lie elsewhere in memory.
    second = compute_delta(output.clone(), input.clone(), previous.clone())
    assert all(same_bits(*pair) for pair in zip(first, second, strict=True))


def test_arguments_are_left_alone_and_results_are_new(make):
    arguments = [make(3, 40) for _ in range(3)]
    before = [argument.clone() for argument in arguments]
    results = [
        *compute_delta(*arguments),
        *update_delta(*arguments, arguments[0], 2),
        delta_statistics(*arguments[:2]),
        apply_delta(*arguments[:2]),
        apply_delta(*arguments, 2),
    ]
    for result in results:
        result.fill_(9.0)
    assert all(same_bits(*pair) for pair in zip(arguments, before, strict=True))


def test_one_graph_when_compiled(make):
    counter = CompileCounterWithBackend("aot_eager")

    def step(output, input, previous):
        delta, stats = compute_delta(output * 2, input, previous)
        later, slope, _ = update_delta(output * 3, input, delta, None, 1)
        return apply_delta(input, later, slope, 2), stats, delta_statistics(later, input)

    torch._dynamo.reset()
    arguments = [make(2, 30, 24) for _ in range(3)]
    compiled = torch.compile(step, fullgraph=True, backend=counter)(*arguments)
    assert counter.frame_count == 1
    assert all(same_bits(*pair) for pair in zip(compiled, step(*arguments), strict=True))


@pytest.mark.parametrize("layout", ["empty", "odd", "transposed"])
def test_registration(make, layout):
    output, input, previous = LAYOUTS[layout](make)
    torch.library.opcheck(torch.ops.accel.compute_delta.default, (output, input))
    torch.library.opcheck(torch.ops.accel.compute_delta.default, (output, input, previous))
    torch.library.opcheck(torch.ops.accel.delta_statistics.default, (output, input))
    torch.library.opcheck(torch.ops.accel.update_delta.default, (output, input, previous, None, 1))
    torch.library.opcheck(torch.ops.accel.update_delta.default, (output, input, *[previous.bfloat16()] * 2, 3))
    torch.library.opcheck(torch.ops.accel.apply_delta.default, (output, input.bfloat16()))
    torch.library.opcheck(torch.ops.accel.apply_delta.default, (output, input, previous, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: compute_delta(torch.ones(2, 3), torch.ones(2, 4)),
            ValueError,
            r"^compute_delta takes one shape: output is \(2, 3\), input is \(2, 4\)$",
        ),
        (
            lambda: compute_delta(torch.ones(3), torch.ones(3), torch.ones(1)),
            ValueError,
            r"^compute_delta takes one shape: output is \(3,\), previous is \(1,\)$",
        ),
        (
            lambda: compute_delta(torch.ones(3), torch.ones(3).half()),
            TypeError,
            r"^compute_delta takes one dtype: output is float32, input is float16; convert one of them$",
        ),
        (
            lambda: compute_delta(torch.ones(3), torch.ones(3, device="meta")),
            ValueError,
            r"^compute_delta takes tensors of one device: output is on cpu, input is on meta$",
        ),
        (
            lambda: compute_delta(torch.ones(3).int(), torch.ones(3).int()),
            TypeError,
            r"^compute_delta takes float16, bfloat16, float32 or float64 tensors: output is int32$",
        ),
        (
            lambda: delta_statistics(torch.ones(2, 3), torch.ones(3)),
            ValueError,
            r"^delta_statistics takes one shape: output is \(2, 3\), input is \(3,\)$",
        ),
        (
            lambda: apply_delta(torch.ones(2, 3), torch.ones(3)),
            ValueError,
            r"^apply_delta takes one shape: input is \(2, 3\), delta is \(3,\)$",
        ),
        (
            lambda: apply_delta(torch.ones(3), torch.ones(3).to(torch.float8_e4m3fn)),
            TypeError,
            r"^apply_delta takes float16, bfloat16, float32 or float64 tensors: delta is float8_e4m3fn$",
        ),
        (
            lambda: apply_delta(torch.ones(3), torch.ones(3), torch.ones(3).half(), 1),
            TypeError,
            r"^apply_delta takes one dtype: delta is float32, slope is float16; convert one of them$",
        ),
        (
            lambda: update_delta(*[torch.ones(3)] * 4, 0),
            ValueError,
            r"^update_delta takes a gap of at least 1 step, not 0$",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_form_that_cannot_run_is_refused_by_the_operation(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use("triton"), pytest.raises(ValueError, match="the triton form cannot run on a cpu tensor"):
        apply_delta(torch.ones(2), torch.ones(2))


@pytest.mark.usefixtures("poisoned_memory")
def test_the_poison_is_there():
    empty = torch.empty_like(torch.ones(4, 4).half(), memory_format=torch.contiguous_format)
    assert torch.empty(5).isnan().all() and empty.isnan().all()
