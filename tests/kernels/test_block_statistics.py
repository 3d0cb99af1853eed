"""block_means and block_statistics: every form against the float64 reference, and what must hold for any statistics."""

import importlib
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from accel.kernels.block_statistics import BlockStatistics, block_means, block_statistics, reference
from accel.kernels.forms import use

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Relative RMS. Half types are multiplied exactly, and what follows is float32: they need hardly more room.
BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}
JUNK = [1e4, math.inf, -math.inf, math.nan]

# Block size, sizes, and how key and value are cut from `make`, which returns contiguous tensors of the shape given.
LAYOUTS = {
    "whole-blocks": (32, None, lambda make: [make(1, 128, 2, 64) for _ in range(2)]),
    "ragged": (32, None, lambda make: [make(1, 150, 1, 72) for _ in range(2)]),
    "sizes": (16, [[16, 0, 5, 1], [0, 16, 9, 3]], lambda make: [make(2, 60, 1, 64) for _ in range(2)]),
    "sizes-beyond-the-end": (32, [[32, 32, 32]], lambda make: [make(1, 70, 1, 64) for _ in range(2)]),
    "shorter-than-a-block": (64, None, lambda make: [make(1, 9, 2, 8) for _ in range(2)]),
    "heads-before-tokens": (32, None, lambda make: [make(2, 2, 40, 80).transpose(1, 2) for _ in range(2)]),
    "fused-projection": (16, [[16, 7]], lambda make: list(make(1, 32, 3, 2, 96).unbind(2)[1:])),
    "tokens-of-a-sequence": (16, None, lambda make: [make(2, 40, 1, 64)[:, 11:], make(2, 29, 1, 64)]),
    "every-other-channel": (16, None, lambda make: [make(1, 40, 2, 128)[..., ::2] for _ in range(2)]),
    "large": (128, [[128, 100]], lambda make: [make(1, 240, 1, 128) for _ in range(2)]),
    "nothing-counts": (16, [[0, 0]], lambda make: [make(1, 30, 1, 64) for _ in range(2)]),
    "no-tokens": (16, None, lambda make: [make(2, 0, 2, 64) for _ in range(2)]),
}


@pytest.fixture
def make(device, guarded):
    generator = torch.Generator().manual_seed(11)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        # Away from zero, so that the mean of a block matters.
        return guarded((torch.randn(shape, generator=generator) + 0.5).to(dtype).to(device))

    return make


def laid_out(layout: str, make, dtype: torch.dtype = torch.float32) -> tuple:
    block_size, sizes, cut = LAYOUTS[layout]
    key, value = cut(lambda *shape: make(*shape, dtype=dtype))
    return key, value, block_size, None if sizes is None else torch.tensor(sizes, dtype=torch.int32).to(key.device)


def exact(key, value, block_size, sizes):
    """All the statistics in float64, on the CPU."""
    place = None if sizes is None else sizes.cpu()
    wide = key.cpu().double(), value.cpu().double()
    return BlockStatistics(*reference.block_statistics(*wide, block_size, place, True, True))


def assert_near(found: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    assert found.shape == expected.shape
    if expected.numel():
        error = (found.cpu().double() - expected).square().mean().sqrt()
        assert error <= bound * expected.square().mean().sqrt(), (float(error), expected)


def same_bits(left: BlockStatistics, right: BlockStatistics) -> bool:
    return all(torch.equal(*pair) for pair in zip(left, right, strict=True))


def test_autocast_shortens_nothing(device, make):
    arguments = laid_out("sizes", make)
    plain = block_statistics(*arguments, spread=True)
    with torch.autocast(device, torch.bfloat16):
        found = block_statistics(*arguments, spread=True)
    assert all(torch.equal(*pair) for pair in zip(found, plain, strict=True))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        *(pytest.param(layout, torch.float32, id=f"{layout}-f32") for layout in LAYOUTS),
        *(
            pytest.param(layout, DTYPES[name], id=f"{layout}-{name}")
            for layout in ("ragged", "sizes", "large", "heads-before-tokens")
            for name in ("f16", "bf16")
        ),
    ],
)
def test_against_float64(make, dtype, layout):
    arguments = laid_out(layout, make, dtype)
    expected = exact(*arguments)
    wishes = [(True, False), (True, True), (False, True), (False, False)]
    for first_order, spread in wishes if layout == "ragged" else wishes[:2]:
        found = block_statistics(*arguments, first_order=first_order, spread=spread)
        assert (found.first_order is not None, found.spread is not None) == (first_order, spread)
        for one, wanted in zip(found, expected, strict=True):
            if one is not None:
                assert one.dtype == torch.float32 and one.device == arguments[0].device and one.is_contiguous()
                assert_near(one, wanted, BOUNDS[dtype])
    key, _, block_size, sizes = arguments
    assert_near(block_means(key, block_size, sizes), expected.mean_key, BOUNDS[dtype])


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_sums_that_are_made_in_pieces(make, monkeypatch, dtype):
    monkeypatch.setattr(importlib.import_module("accel.kernels.block_statistics.cpu"), "_TOKENS", 48)
    module = importlib.import_module("accel.kernels.block_statistics.triton")
    for name, value in {"MAX_SPLITS": 3, "BLOCKS_PER_SPLIT": 1, "LANES": 2048, "COLUMNS": {dtype: 64}}.items():
        monkeypatch.setattr(module, name, value)
    key, value = (make(1, 120, 1, 72, dtype=dtype) for _ in range(2))
    sizes = torch.tensor([[16, 3] * 4], dtype=torch.int32).to(key.device)
    for held in (None, sizes):
        found = block_statistics(key, value, 16, held, spread=True)
        for one, wanted in zip(found, exact(key, value, 16, held), strict=True):
            assert_near(one, wanted, BOUNDS[dtype])


def test_blocks_of_one_repeated_token(make):
    """Their means are that token; no value goes with a key that does not change."""
    tokens = (make(1, 5, 2, 64) * 8).round() / 8
    key = tokens.repeat_interleave(16, dim=1)
    found = block_statistics(key, make(1, 80, 2, 64), 16, spread=True)
    assert torch.equal(found.mean_key, tokens)
    assert found.spread.max() < 1e-3 and found.first_order.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_the_order_inside_a_block_does_not_matter(make, dtype):
    key, value = (make(1, 100, 1, 64, dtype=dtype) for _ in range(2))
    order = torch.cat([start + torch.randperm(min(32, 100 - start)) for start in range(0, 100, 32)]).to(key.device)
    found = block_statistics(key[:, order], value[:, order], 32, spread=True)
    for one, wanted in zip(found, block_statistics(key, value, 32, spread=True), strict=True):
        assert_near(one, wanted.cpu().double(), 1e-5)


@pytest.mark.parametrize("layout", ["ragged", "sizes"])
def test_first_order_and_means_make_up_the_whole_product(make, layout):
    """sum_j H_j + sum_j n_j mean_key_j^T mean_value_j = sum of k^T v over all tokens that count."""
    key, value, block_size, sizes = laid_out(layout, make)
    found = block_statistics(key, value, block_size, sizes)
    length = key.shape[1]
    starts = torch.arange(0, length, block_size)
    counts = (length - starts).clamp(max=block_size).expand(len(key), -1)
    counts = counts if sizes is None else torch.minimum(counts, sizes.cpu())
    real = (torch.arange(length) % block_size < counts.repeat_interleave(block_size, dim=1)[:, :length]).double()
    whole = torch.einsum("bn,bnhd,bnhe->bhde", real, key.cpu().double(), value.cpu().double())
    means = [mean.cpu().double() for mean in found[:2]]
    between = torch.einsum("bn,bnhd,bnhe->bhde", counts.double(), *means)
    tokens = real.sum(dim=1)[:, None, None, None]
    assert_near(found.first_order.cpu().double() * tokens + between, whole, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_padding_does_not_matter(make, dtype):
    key, value, block_size, sizes = laid_out("sizes", make, dtype)
    offsets = torch.arange(key.shape[1], device=key.device) % block_size
    padding = offsets >= sizes.repeat_interleave(block_size, dim=1)[:, : key.shape[1]]
    results = []
    for junk in [0.0, *JUNK]:
        dirty = [x.masked_fill(padding[..., None, None], junk) for x in (key, value)]
        found = block_statistics(*dirty, block_size, sizes, spread=True)
        results.append((found, block_means(dirty[0], block_size, sizes)))
    for statistics, means in results[1:]:
        assert same_bits(statistics, results[0][0]) and torch.equal(means, results[0][1])
    absent = sizes == 0
    assert not results[0][0].mean_key[absent].any() and not results[0][0].mean_value[absent].any()
    assert not results[0][0].spread.transpose(1, 2)[absent].any()


def test_large_float16_values_do_not_overflow(make):
    """The sums of a block, and of all blocks, are far beyond what float16 can hold."""
    key = make(1, 4000, 1, 64, dtype=torch.float16) * 200
    value = key + 200
    assert (key.float().mT @ value.float()).abs().max() > 65504
    found = block_statistics(key, value, 128, spread=True)
    for one, wanted in zip(found, exact(key, value, 128, None), strict=True):
        assert_near(one, wanted, 1e-4)
    assert found.spread.min() > 65504


def test_keys_far_from_zero_in_float32(make):
    key, value = make(1, 140, 1, 64) + 300, make(1, 140, 1, 64) + 300
    found, expected = block_statistics(key, value, 64, spread=True), exact(key, value, 64, None)
    assert_near(found.mean_key, expected.mean_key, 1e-6)
    # Products of means of 300 are 90,000 times what is looked for.
    assert_near(found.first_order, expected.first_order, 5e-3)
    assert_near(found.spread, expected.spread, 5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_the_same_call_gives_the_same_bits(make, dtype):
    key, value, block_size, sizes = laid_out("sizes", make, dtype)
    first = block_statistics(key, value, block_size, sizes, spread=True)
    # Copies lie elsewhere in memory.
    assert same_bits(first, block_statistics(key.clone(), value.clone(), block_size, sizes.clone(), spread=True))


def test_arguments_are_left_alone_and_results_are_new(make):
    arguments = laid_out("sizes", make)
    before = [argument.clone() for argument in (arguments[0], arguments[1], arguments[3])]
    for result in [*block_statistics(*arguments, spread=True), block_means(arguments[0], 16, arguments[3])]:
        result.fill_(9)
    after = arguments[0], arguments[1], arguments[3]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_one_graph_when_compiled(make):
    counter = CompileCounterWithBackend("aot_eager")

    def step(key, value, sizes):
        found = block_statistics(key * 2, value, 16, sizes)
        return block_means(value, 16, sizes) + found.mean_key, found.first_order

    torch._dynamo.reset()
    key, value, _, sizes = laid_out("sizes", make)
    compiled = torch.compile(step, fullgraph=True, backend=counter)(key, value, sizes)
    assert counter.frame_count == 1
    assert all(torch.equal(*pair) for pair in zip(compiled, step(key, value, sizes), strict=True))


@pytest.mark.parametrize("layout", ["shorter-than-a-block", "nothing-counts", "no-tokens"])
def test_registration(make, layout):
    key, value, block_size, sizes = laid_out(layout, make, torch.float16)
    torch.library.opcheck(torch.ops.accel.block_means.default, (key, block_size, sizes))
    for wanted in [(True, False), (False, True)]:
        arguments = (key, value, block_size, sizes, *wanted)
        torch.library.opcheck(torch.ops.accel.block_statistics.default, arguments)


def test_the_reference_in_float64_is_exact():
    key, value = torch.randn(2, 1, 100, 2, 64, dtype=torch.float64)
    with use("reference"):
        found = block_statistics(key, value, 32, spread=True)
        order = torch.cat([start + torch.randperm(min(32, 100 - start)) for start in range(0, 100, 32)])
        again = block_statistics(key[:, order], value[:, order], 32, spread=True)
    assert all(one.dtype == torch.float64 for one in found)
    for one, wanted in zip(again, found, strict=True):
        assert_near(one, wanted, 1e-12)
    last = key[0, 96:, 1] - key[0, 96:, 1].mean(dim=0)
    assert_near(found.spread[0, 1, 3], (last.T @ value[0, 96:, 1]).norm(), 1e-12)


X = torch.ones(2, 40, 3, 64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: block_means(X, 48),
            ValueError,
            r"^block_means takes blocks of 16, 32, 64 or 128 tokens: block_size is 48$",
        ),
        (
            lambda: block_means(X[0], 16),
            ValueError,
            r"^block_means takes tensors of shape \(batch, tokens, heads, head size\): x has shape \(40, 3, 64\)$",
        ),
        (
            lambda: block_statistics(X[..., :60], X[..., :60]),
            ValueError,
            r"^block_statistics takes head sizes that are multiples of 8 up to 128: key has 60$",
        ),
        (
            lambda: block_statistics(*torch.ones(2, 1, 20, 1, 136)),
            ValueError,
            r"^block_statistics takes head sizes that are multiples of 8 up to 128: key has 136$",
        ),
        (
            lambda: block_statistics(X, X[:, 1:]),
            ValueError,
            r"^block_statistics takes one shape: key is \(2, 40, 3, 64\), value is \(2, 39, 3, 64\)$",
        ),
        (
            lambda: block_statistics(X, X.half()),
            TypeError,
            r"^block_statistics takes one dtype: key is float32, value is float16; convert one of them$",
        ),
        (
            lambda: block_means(X.double(), 16),
            TypeError,
            r"^block_means takes float64 in the reference form alone: x is float64$",
        ),
        (
            lambda: block_means(X, 16, torch.ones(2, 4, dtype=torch.int32)),
            ValueError,
            r"^block_means takes sizes of shape \(2, 3\): it has shape \(2, 4\)$",
        ),
        (
            lambda: block_means(X, 16, torch.ones(2, 3)),
            TypeError,
            r"^block_means takes sizes as int32: sizes is float32$",
        ),
        (
            lambda: block_means(X, 16, torch.ones(2, 3, dtype=torch.int32, device="meta")),
            ValueError,
            r"^block_means takes tensors of one device: sizes is on meta, the sequence is on cpu$",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(call, error, message):
    with pytest.raises(error, match=message):
        call()
