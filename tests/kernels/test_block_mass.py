"""block_mass: every form against the float64 reference, and what must hold for any mass."""

import importlib
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from accel.kernels.block_mass import block_mass, reference
from accel.kernels.block_statistics import block_means
from accel.kernels.forms import use

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Relative RMS. Products of half types are exact and what follows is float32; mean keys are split into two halves.
BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}
JUNK = [1e4, math.inf, -math.inf, math.nan]

# Block size, sizes of keys and of queries, and how query and key are cut from `make`.
LAYOUTS = {
    "whole-blocks": (32, None, None, lambda make: [make(1, 128, 1, 64), make(1, 64, 1, 64)]),
    "ragged": (16, None, None, lambda make: [make(1, 150, 1, 72), make(1, 91, 1, 72)]),
    "sizes": (
        16,
        [[16, 0, 5, 16], [0, 9, 16, 3]],
        [[3, 16, 0, 16, 16], [16, 16, 1, 0, 7]],
        lambda make: [make(2, 77, 2, 64), make(2, 60, 2, 64)],
    ),
    "grouped-heads": (32, [[32, 20, 3]], None, lambda make: [make(1, 50, 4, 64), make(1, 70, 2, 64)]),
    "shorter-than-a-block": (64, None, None, lambda make: [make(1, 9, 2, 8), make(1, 7, 2, 8)]),
    "heads-before-tokens": (32, None, None, lambda make: [make(2, 2, 70, 80).transpose(1, 2) for _ in range(2)]),
    "fused-projection": (64, None, None, lambda make: list(make(1, 140, 3, 1, 96).unbind(2)[:2])),
    "every-other-channel": (16, None, None, lambda make: [make(1, 40, 2, 128)[..., ::2] for _ in range(2)]),
    "large": (128, [[128, 70]], [[128, 12]], lambda make: [make(1, 140, 1, 128), make(1, 256, 1, 128)]),
    "nothing-counts": (16, [[0, 0]], None, lambda make: [make(1, 20, 2, 64), make(1, 30, 2, 64)]),
    "no-keys": (16, None, None, lambda make: [make(1, 20, 2, 64), make(1, 0, 2, 64)]),
}


@pytest.fixture
def make(device, guarded):
    generator = torch.Generator().manual_seed(13)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return guarded((1.5 * torch.randn(shape, generator=generator)).to(dtype).to(device))

    return make


def padding(sizes, length: int, block_size: int, batch: int) -> torch.Tensor:
    """Which tokens do not count: (batch, length)."""
    if sizes is None:
        return torch.zeros(batch, length, dtype=torch.bool)
    return torch.arange(length) % block_size >= sizes.cpu().repeat_interleave(block_size, dim=1)[:, :length]


def fresh_lse(query, key, block_size, sizes, scale=None):
    """The log-sum-exp over the keys that count, float32 (batch, heads, queries); computed in float64."""
    group = query.shape[2] // key.shape[2]
    keys = key.cpu().double().repeat_interleave(group, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", query.cpu().double(), keys)
    scores = scores * (1 / math.sqrt(query.shape[3]) if scale is None else scale)
    hidden = padding(sizes, key.shape[1], block_size, len(key))
    lse = scores.masked_fill(hidden[:, None, None], -math.inf).logsumexp(dim=-1)
    return lse.float().to(query.device)


def laid_out(layout: str, make, dtype: torch.dtype = torch.float32):
    block_size, sizes, query_sizes, cut = LAYOUTS[layout]
    query, key = cut(lambda *shape: make(*shape, dtype=dtype))
    sizes, query_sizes = (
        None if counts is None else torch.tensor(counts, dtype=torch.int32).to(query.device)
        for counts in (sizes, query_sizes)
    )
    return query, key, fresh_lse(query, key, block_size, sizes), block_size, sizes, query_sizes


def exact(query, key, lse, block_size, sizes, query_sizes, mean_key):
    """Both results in float64, on the CPU."""
    wide = [x.cpu().double() for x in (query, key, lse)]
    places = [None if counts is None else counts.cpu() for counts in (sizes, query_sizes)]
    scale = 1 / math.sqrt(query.shape[3])
    return reference.block_mass(*wide, block_size, *places, mean_key.cpu().double(), scale)


def assert_near(found: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    assert found.shape == expected.shape
    if expected.numel():
        error = (found.cpu().double() - expected).square().mean().sqrt()
        assert error <= bound * expected.square().mean().sqrt(), (float(error), expected)


def test_autocast_shortens_nothing(device, make):
    *arguments, query_sizes = laid_out("sizes", make)
    _, key, _, block_size, sizes = arguments
    more = {"query_sizes": query_sizes, "mean_key": block_means(key, block_size, sizes)}
    plain = block_mass(*arguments, **more)
    with torch.autocast(device, torch.bfloat16):
        found = block_mass(*arguments, **more)
    assert all(torch.equal(*pair) for pair in zip(found, plain, strict=True))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        *(pytest.param(layout, torch.float32, id=f"{layout}-f32") for layout in LAYOUTS),
        *(
            pytest.param(layout, DTYPES[name], id=f"{layout}-{name}")
            for layout in ("ragged", "sizes", "large", "grouped-heads")
            for name in ("f16", "bf16")
        ),
    ],
)
def test_against_float64(make, dtype, layout):
    query, key, lse, block_size, sizes, query_sizes = laid_out(layout, make, dtype)
    mean_key = block_means(key, block_size, sizes)
    # A level of its own for each row, as after steps in which rows drifted apart.
    lse = lse.nan_to_num(neginf=0.0) + torch.linspace(-2, 2, lse.shape[2], device=lse.device)
    found = block_mass(query, key, lse, block_size, sizes, query_sizes=query_sizes, mean_key=mean_key)
    expected = exact(query, key, lse, block_size, sizes, query_sizes, mean_key)
    for one, wanted in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and one.device == query.device and one.is_contiguous()
        assert_near(one, wanted, BOUNDS[dtype])
    alone, none = block_mass(query, key, lse, block_size, sizes, query_sizes=query_sizes)
    assert none is None and torch.equal(alone, found[0])


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("block_size", [16, 32])
def test_tiles_that_are_smaller_than_the_sequences(make, monkeypatch, block_size):
    cpu = importlib.import_module("accel.kernels.block_mass.cpu")
    monkeypatch.setattr(cpu, "_ROWS", 64)
    monkeypatch.setattr(cpu, "_COLUMNS", 32)
    triton = importlib.import_module("accel.kernels.block_mass.triton")
    monkeypatch.setattr(triton, "ROWS", {torch.float32: 16})
    monkeypatch.setattr(triton, "COLUMNS", 16)
    query, key = make(1, 140, 2, 64), make(1, 100, 1, 64)
    lse, mean_key = fresh_lse(query, key, block_size, None), block_means(key, block_size)
    found = block_mass(query, key, lse, block_size, mean_key=mean_key)
    for one, wanted in zip(found, exact(query, key, lse, block_size, None, None, mean_key), strict=True):
        assert_near(one, wanted, 1e-5)


@pytest.mark.parametrize("layout", ["ragged", "sizes", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_row_of_blocks_adds_up_to_its_queries(make, dtype, layout):
    query, key, lse, block_size, sizes, query_sizes = laid_out(layout, make, dtype)
    mass, _ = block_mass(query, key, lse, block_size, sizes, query_sizes=query_sizes)
    hidden = padding(query_sizes, query.shape[1], block_size, len(query))
    counted = torch.stack([(~part).sum(dim=1) for part in hidden.split(block_size, dim=1)], dim=1)
    expected = counted[:, None].expand(mass.shape[:3]).double()
    assert_near(mass.sum(dim=-1), expected, 1e-5)


def test_the_scale_is_obeyed(make):
    query, key = make(1, 60, 2, 64), make(1, 60, 2, 64)
    lse = fresh_lse(query, key, 16, None, scale=0.3)
    mass, tail = block_mass(query, key, lse, 16, mean_key=block_means(key, 16), scale=0.3)
    rows = torch.tensor([16.0, 16, 16, 12], dtype=torch.float64).expand(1, 2, 4)
    assert_near(mass.sum(dim=-1), rows, 1e-5)
    # By Jensen's inequality, a block's mean key never has more than the mass of its keys.
    assert (tail <= mass * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_tail_is_exact_where_keys_do_not_change_inside_a_block(make, dtype):
    query, key = make(1, 50, 2, 64, dtype=dtype), make(1, 4, 2, 64, dtype=dtype).repeat_interleave(16, dim=1)
    sizes = torch.tensor([[16, 5, 0, 11]], dtype=torch.int32).to(key.device)
    lse = fresh_lse(query, key, 16, sizes)
    mass, tail = block_mass(query, key, lse, 16, sizes, mean_key=block_means(key, 16, sizes))
    assert_near(tail, mass.cpu().double(), BOUNDS[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_padding_does_not_matter(make, dtype):
    query, key, lse, block_size, sizes, query_sizes = laid_out("sizes", make, dtype)
    hidden_keys = padding(sizes, key.shape[1], block_size, len(key)).to(key.device)
    hidden_queries = padding(query_sizes, query.shape[1], block_size, len(query)).to(key.device)
    results = []
    for junk in [0.0, *JUNK]:
        dirty = (
            query.masked_fill(hidden_queries[..., None, None], junk),
            key.masked_fill(hidden_keys[..., None, None], junk),
            lse.masked_fill(hidden_queries[:, None], junk),
        )
        means = block_means(dirty[1], block_size, sizes).masked_fill((sizes == 0)[..., None, None], junk)
        results.append(block_mass(*dirty, block_size, sizes, query_sizes=query_sizes, mean_key=means))
    for found in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(found, results[0], strict=True))
    for one in results[0]:
        assert not one.transpose(1, 3)[sizes == 0].any() and not one.transpose(1, 2)[query_sizes == 0].any()


def test_a_common_shift_of_the_lse_leaves_the_ranking(make):
    query, key, lse, block_size, sizes, _ = laid_out("ragged", make)
    mass, _ = block_mass(query, key, lse, block_size, sizes)
    shifted, _ = block_mass(query, key, lse + 3, block_size, sizes)
    assert torch.equal(mass.argsort(dim=-1, stable=True), shifted.argsort(dim=-1, stable=True))
    assert_near(shifted, mass.cpu().double() * math.exp(-3), 1e-5)


@pytest.mark.parametrize("level", [-1000.0, -math.inf])
def test_a_stale_lse_is_cut_off(make, level):
    query, key = make(1, 40, 1, 64), make(1, 37, 1, 64)
    lse = torch.full((1, 1, 40), level, device=query.device)
    found = block_mass(query, key, lse, 16, mean_key=block_means(key, 16))
    expected = math.exp(30) * torch.tensor([16.0, 16, 8])[:, None].double() * torch.tensor([16.0, 16, 5])
    for one in found:
        assert_near(one, expected.expand(1, 1, 3, 3), 1e-5)


def test_a_row_without_keys_has_no_mass(make):
    query, key = make(1, 20, 1, 64), make(1, 30, 1, 64)
    lse = torch.full((1, 1, 20), -math.inf, device=query.device)
    sizes = torch.zeros(1, 2, dtype=torch.int32, device=query.device)
    for one in block_mass(query, key, lse, 16, sizes, mean_key=block_means(key, 16, sizes)):
        assert torch.equal(one, torch.zeros_like(one))


def test_a_query_that_is_not_a_number_shows(make):
    query, key = make(1, 40, 1, 64), make(1, 40, 1, 64)
    lse, means = fresh_lse(query, key, 16, None), block_means(key, 16)
    query[0, 20, 0, 5] = math.nan
    for one in block_mass(query, key, lse, 16, mean_key=means):
        assert one[0, 0, 1].isnan().all() and one[0, 0, [0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_the_same_call_gives_the_same_bits(make, dtype):
    query, key, lse, block_size, sizes, query_sizes = laid_out("sizes", make, dtype)
    lse, means = lse.nan_to_num(neginf=0.0), block_means(key, block_size, sizes)
    first = block_mass(query, key, lse, block_size, sizes, query_sizes=query_sizes, mean_key=means)
    # Copies lie elsewhere in memory.
    copies = query.clone(), key.clone(), lse.clone()
    again = block_mass(*copies, block_size, sizes, query_sizes=query_sizes, mean_key=means.clone())
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_arguments_are_left_alone_and_results_are_new(make):
    query, key, lse, block_size, sizes, query_sizes = laid_out("sizes", make)
    arguments = query, key, lse, block_means(key, block_size, sizes)
    before = [argument.clone() for argument in arguments]
    for result in block_mass(*arguments[:3], block_size, sizes, query_sizes=query_sizes, mean_key=arguments[3]):
        result.fill_(9)
    assert all(torch.equal(*pair) for pair in zip(before, arguments, strict=True))


def test_one_graph_when_compiled(make):
    counter = CompileCounterWithBackend("aot_eager")

    def step(query, key, lse, sizes):
        alone, _ = block_mass(query, key, lse, 32, sizes)
        return alone, *block_mass(query, key, lse, 32, sizes, mean_key=block_means(key, 32, sizes))

    torch._dynamo.reset()
    query, key, lse, _, sizes, _ = laid_out("grouped-heads", make)
    compiled = torch.compile(step, fullgraph=True, backend=counter)(query, key, lse, sizes)
    assert counter.frame_count == 1
    assert all(torch.equal(*pair) for pair in zip(compiled, step(query, key, lse, sizes), strict=True))


@pytest.mark.parametrize("layout", ["shorter-than-a-block", "nothing-counts", "no-keys"])
def test_registration(make, layout):
    query, key, lse, block_size, sizes, query_sizes = laid_out(layout, make, torch.float16)
    for means in (None, block_means(key, block_size, sizes)):
        arguments = (query, key, lse, block_size, sizes, query_sizes, means, 0.125)
        torch.library.opcheck(torch.ops.accel.block_mass.default, arguments)


def test_the_reference_in_float64_is_exact():
    query, key = torch.randn(1, 50, 2, 64, dtype=torch.float64), torch.randn(1, 70, 1, 64, dtype=torch.float64)
    scores = torch.einsum("bqhd,bkd->bhqk", query, key[:, :, 0]) * 0.2
    with use("reference"):
        mass, _ = block_mass(query, key, scores.logsumexp(dim=-1), 32, scale=0.2)
    assert mass.dtype == torch.float64
    shares = scores.softmax(dim=-1)
    assert_near(mass[0, 1, 1, 2], shares[0, 1, 32:, 64:].sum(), 1e-12)
    assert_near(mass.sum(dim=-1), torch.tensor([32.0, 18.0], dtype=torch.float64).expand(1, 2, 2), 1e-12)


Q, K, L = torch.ones(2, 40, 4, 64), torch.ones(2, 50, 2, 64), torch.ones(2, 4, 40)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: block_mass(Q, K, L, 8),
            ValueError,
            r"^block_mass takes blocks of 16, 32, 64 or 128 tokens: block_size is 8$",
        ),
        (
            lambda: block_mass(Q[:, :, :3], K, L),
            ValueError,
            r"^block_mass takes query and key of one batch and head size, with query's heads a multiple of key's: "
            r"query has shape \(2, 40, 3, 64\), key has shape \(2, 50, 2, 64\)$",
        ),
        (
            lambda: block_mass(Q, K.half(), L),
            TypeError,
            r"^block_mass takes one dtype: query is float32, key is float16; convert one of them$",
        ),
        (
            lambda: block_mass(Q, K.to("meta"), L),
            ValueError,
            r"^block_mass takes tensors of one device: query is on cpu, key is on meta$",
        ),
        (
            lambda: block_mass(Q, K, L[:, :2]),
            ValueError,
            r"^block_mass takes lse of shape \(2, 4, 40\): it has shape \(2, 2, 40\)$",
        ),
        (
            lambda: block_mass(Q.half(), K.half(), L.half()),
            TypeError,
            r"^block_mass takes lse as float32: lse is float16$",
        ),
        (
            lambda: block_mass(Q, K, L, mean_key=torch.ones(2, 1, 4, 64)),
            ValueError,
            r"^block_mass takes mean_key of shape \(2, 1, 2, 64\): it has shape \(2, 1, 4, 64\)$",
        ),
        (
            lambda: block_mass(Q, K, L, 16, query_sizes=torch.ones(2, 4, dtype=torch.int32)),
            ValueError,
            r"^block_mass takes query_sizes of shape \(2, 3\): it has shape \(2, 4\)$",
        ),
        (
            lambda: block_mass(Q, K, L, 16, torch.ones(2, 4, dtype=torch.int64)),
            TypeError,
            r"^block_mass takes sizes as int32: sizes is int64$",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(call, error, message):
    with pytest.raises(error, match=message):
        call()
