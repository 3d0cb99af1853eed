"""block_attention and dense_attention: every form against float64, and what their arguments may be."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from accel.kernels.block_attention import block_attention, dense_attention
from accel.kernels.blocks import listed_blocks
from accel.kernels.forms import use
from tests.attention_problem import BLOCK, DTYPES, SIZES, VARIANTS, Problem, assert_near, same_bits


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("sizes", [None, SIZES], ids=["whole", "sizes"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_against_float64(device, dtype, variant, sizes):
    problem = Problem(dtype=dtype, variant=variant, sizes=sizes)
    assert_near(problem.run(device), problem.exact(), dtype)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("size", [8, 72, 80, 96, 112, 128])
def test_head_sizes(device, guarded, size, dtype):
    problem = Problem(length=32, keys=70, size=size, dtype=dtype, variant="all")
    for name in ("query", "key", "value"):
        setattr(problem, name, guarded(getattr(problem, name)))
    assert_near(problem.run(device), problem.exact(), dtype)


def test_rows_do_not_depend_on_how_many_are_gathered(monkeypatch):
    problem = Problem(length=90, variant="hybrid", sizes=SIZES)
    wanted = problem.exact()
    form = importlib.import_module("accel.kernels.block_attention.cpu")
    with use("cpu"):
        for gathered in (1, 5000, 1 << 30):
            for name in ("_GATHERED", "_GATHERED_BESIDE_OTHERS"):
                monkeypatch.setattr(form, name, gathered)
            assert_near(problem.run("cpu"), wanted, torch.float32)


@pytest.mark.parametrize("columns", [16, 32])
def test_blocks_that_are_taken_in_pieces(device, monkeypatch, columns):
    """A short block ends in any of its pieces."""
    form = importlib.import_module("accel.kernels.block_attention.triton")
    tile_for = form.tile_for
    monkeypatch.setattr(
        form,
        "tile_for",
        lambda *arguments: (tile_for(*arguments)[0], replace(tile_for(*arguments)[1], columns=columns)),
    )
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, 150, 1, 64, generator=generator) for _ in range(3))
    sizes = torch.tensor([[5, 64, 22]], dtype=torch.int32)
    blocks = torch.tensor([[1, 0, 2], [0, 2, 1], [2, 2, 2]], dtype=torch.int32)[None, None]
    counts = torch.tensor([[[3, 2, 1]]], dtype=torch.int32)
    arguments = [x.to(device) for x in (query, key, value, blocks, counts)]
    result = block_attention(*arguments, block_size=64, sizes=sizes.to(device))
    with use("reference"):
        wanted = block_attention(query.double(), key.double(), value.double(), blocks, counts, sizes=sizes)
    assert_near(result, wanted, torch.float32)


def test_a_tile_that_is_given_stands_for_the_tables(monkeypatch):
    form = importlib.import_module("accel.kernels.block_attention.triton")
    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, **constants: launched.append((constants["COLUMNS"], constants["num_warps"]))

    monkeypatch.setattr(form, "attend", Kernel())
    monkeypatch.setattr(form, "tile_for", lambda *_: (64, form.Tile(columns=16, warps=4, stages=3, tokens=16)))
    problem = Problem(length=32, keys=96)
    sequences = (problem.query, problem.key, problem.value, problem.blocks, problem.counts)
    for tile in (None, form.Tile(columns=8, warps=2, stages=1, tokens=16)):
        form.block_attention(*sequences, BLOCK, None, None, None, None, None, None, 0.125, tile=tile)
    assert launched == [(16, 4), (8, 2)]


@pytest.mark.parametrize(
    ("variant", "junk"), [("listed", math.nan), ("all", 1e4), ("all", math.inf), ("all", math.nan)]
)
def test_padding_never_matters(device, variant, junk):
    problem = Problem(variant=variant, sizes=SIZES)
    clean = problem.run(device)
    padding = ~(torch.arange(BLOCK) < SIZES[..., None]).flatten(1)[:, :104]
    for x in (problem.key, problem.value):
        x[padding] = junk
    for name in {"mean_key", "mean_value"} & problem.beside.keys():
        problem.beside[name][SIZES == 0] = junk
    assert same_bits(problem.run(device), clean)


def test_a_query_does_not_see_another(device):
    problem = Problem(variant="hybrid")
    clean_out, clean_lse = problem.run(device)
    problem.query[:, 7] = math.nan
    out, lse = problem.run(device)
    kept = torch.arange(24) != 7
    assert same_bits((out[:, kept], lse[..., kept]), (clean_out[:, kept], clean_lse[..., kept]))


def test_what_stands_behind_a_list_is_not_read(device):
    problem = Problem(variant="hybrid", sizes=SIZES)
    clean = problem.run(device)
    behind = torch.arange(problem.blocks.shape[-1]) >= problem.counts[..., None]
    problem.blocks[behind] = 1 << 30
    assert same_bits(problem.run(device), clean)


@pytest.mark.parametrize("variant", ["listed", "zeroth"])
def test_nothing_to_attend_to(device, variant):
    """Empty lists, lists of blocks that do not exist, and groups of the tail that are masked from end to end."""
    sizes = torch.zeros(2, 40, dtype=torch.int32)
    sizes[0, 37:] = 16
    problem = Problem(keys=40 * BLOCK, variant=variant, sizes=sizes)
    problem.blocks[:, :, 0] = torch.arange(problem.blocks.shape[-1], dtype=torch.int32)
    problem.counts[:, :, 1:] = 0
    assert_near(problem.run(device), problem.exact(), torch.float32)
    out, lse = problem.run(device)
    assert not out[1].any() and (lse[1] == -math.inf).all()
    assert (lse[0] == -math.inf).all() == (variant == "listed")
    dense = dense_attention(
        *(x.to(device) for x in (problem.query, problem.key, problem.value)), sizes=sizes.to(device), block_size=BLOCK
    )
    assert not dense[0][1].any() and (dense[1][1] == -math.inf).all() and dense[1][0].isfinite().all()
    problem.blocks = problem.blocks[..., :0]
    problem.counts = torch.zeros_like(problem.counts)
    assert_near(problem.run(device), problem.exact(), torch.float32)


@pytest.mark.parametrize("variant", ["listed", "all"])
def test_strides(device, variant):
    """Heads first in memory, a slice of a longer sequence, a row that is not contiguous, values beside keys."""
    problem = Problem(variant=variant)
    wanted = problem.run(device)
    problem.query = problem.query.transpose(1, 2).contiguous().transpose(1, 2)
    together = torch.cat([problem.key, problem.value], -1)
    problem.key, problem.value = together[..., :64], together[..., 64:]
    problem.blocks = problem.blocks.repeat_interleave(2, -1)[..., ::2]
    problem.counts = problem.counts.transpose(0, 2).contiguous().transpose(0, 2)
    if variant == "all":
        problem.beside["prior"] = torch.stack([problem.beside["prior"]] * 2, -1)[..., 0]
        problem.beside["first_order"] = problem.beside["first_order"].mT.contiguous().mT
    assert same_bits(problem.run(device), wanted)
    problem.query = torch.cat([problem.random(1, 9, 2, 64), problem.query], 1)[:, 9:]
    assert same_bits(problem.run(device), wanted)


@pytest.mark.parametrize("variant", ["zeroth", "all"])
@pytest.mark.parametrize("largest", [200.0, 30000.0])
def test_large_values_stay_in_the_range_of_float16(device, largest, variant):
    """Sums over a block, and products of keys with values, would not."""
    problem = Problem(dtype=torch.float16, variant="listed")
    problem.value = (problem.value.clamp(-2, 2) * (largest / 2)).half()
    problem.key = (problem.key * 3).half()
    problem.query = (problem.query / 3).half()
    problem.add_tail(variant == "all")
    if variant == "all" and largest > 1e4:
        problem.beside["first_order"] *= 10
        assert problem.beside["first_order"].abs().max() > 65504
        problem.query = (problem.query / 100).half()
    assert_near(problem.run(device), problem.exact(), torch.float16)


def test_the_same_call_gives_the_same_bits(device):
    problem = Problem(dtype=torch.float16, variant="all", sizes=SIZES)
    first = problem.run(device)
    for name in ("query", "key", "value", "blocks", "counts"):
        setattr(problem, name, getattr(problem, name).clone())
    assert same_bits(problem.run(device), first)


def test_arguments_are_left_alone(device):
    problem = Problem(variant="all", sizes=SIZES[:1])
    arguments = [problem.query, problem.key, problem.value, problem.blocks, problem.counts, *problem.beside.values()]
    before = [argument.clone() for argument in arguments]
    for result in problem.run(device):
        result.fill_(9.0)
    assert all(torch.equal(*pair) for pair in zip(arguments, before, strict=True))


def test_autocast_shortens_nothing(device):
    problem = Problem(variant="all", sizes=SIZES)
    plain = problem.run(device)
    with torch.autocast(device, torch.bfloat16):
        found = problem.run(device)
    assert [part.dtype for part in found] == [part.dtype for part in plain] and same_bits(found, plain)


def test_one_graph_when_compiled(device):
    counter = CompileCounterWithBackend("aot_eager")
    problem = Problem(variant="all")

    def step(query: Tensor) -> Tensor:
        kept, problem.query = problem.query, query
        out, lse = problem.run(device)
        problem.query = kept
        dense, _ = dense_attention(out, problem.key.to(device), problem.value.to(device), block_size=BLOCK)
        return dense + lse.transpose(1, 2)[..., None]

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=counter)(problem.query)
    assert counter.frame_count == 1
    assert torch.equal(compiled, step(problem.query))


@pytest.mark.parametrize("variant", ["listed", "all"])
def test_registration(device, variant):
    problem = Problem(length=20, keys=40, variant=variant, dtype=torch.bfloat16)
    names = ("mean_key", "mean_value", "first_order", "prior", "prior_lse")
    beside = [problem.beside.get(name) for name in names]
    arguments = [problem.query, problem.key, problem.value, problem.blocks, problem.counts, BLOCK, None, *beside, 0.125]
    moved = [x.to(device) if isinstance(x, Tensor) else x for x in arguments]
    torch.library.opcheck(torch.ops.accel.block_attention.default, tuple(moved))
    torch.library.opcheck(torch.ops.accel.dense_attention.default, (*moved[:3], None, BLOCK, 0.125))


def test_full_lists_go_through_the_dense_routine_of_the_cpu():
    problem = Problem()
    problem.blocks = torch.arange(problem.number, dtype=torch.int32).expand(*problem.counts.shape, -1).contiguous()
    problem.counts = torch.full_like(problem.counts, problem.number)
    with use("cpu"):
        dense = dense_attention(problem.query, problem.key, problem.value, block_size=BLOCK)
        assert same_bits(problem.run("cpu"), dense)


def test_what_is_listed():
    blocks = torch.tensor([[3, 0, 9, -1]])[None, None]
    marks = listed_blocks(blocks, torch.tensor([[[2]]]), 5)
    assert marks.tolist() == [[[[True, False, False, True, False]]]]


@pytest.mark.parametrize("form", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("listed", "count"),
    [([1, 4, 1], 3), ([0, 0, 0], 2), ([1, 2, 3], 4), ([1, 2, 3], -1)],
    ids=["twice", "the filling twice", "longer than the list", "negative"],
)
def test_lists_that_would_count_a_block_twice_are_refused(form, listed, count):
    problem = Problem(variant="hybrid")
    problem.blocks[0, 1, 1, :], problem.counts[0, 1, 1] = torch.tensor(listed), count
    with use(form), pytest.raises(ValueError, match="takes lists of distinct blocks that are as long"):
        problem.run("cpu")


def refused(change: object, error: type[Exception], message: str) -> object:
    return pytest.param(change, error, f"^block_attention {message}$")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        refused({"block_size": 48}, ValueError, "takes blocks of 16, 32, 64 or 128 tokens: block_size is 48"),
        refused({"scale": 0.0}, ValueError, "takes a scale above 0: it is 0.0"),
        refused({"mean_key": torch.zeros(1, 7, 2, 64)}, ValueError, ".* together: mean_value is missing"),
        refused({"prior_lse": torch.zeros(1, 2, 24)}, ValueError, ".* together: prior is missing"),
        refused({"first_order": torch.zeros(1, 2, 64, 64)}, ValueError, "takes first_order with mean_key .*"),
        refused({"sizes": torch.zeros(1, 7)}, TypeError, "takes sizes as int32: sizes is float32"),
        refused({"sizes": torch.zeros(1, 6).int()}, ValueError, r".* sizes of shape \(1, 7\): .* \(1, 6\)"),
        refused(
            {"mean_key": torch.zeros(1, 6, 2, 64), "mean_value": torch.zeros(1, 7, 2, 64)},
            ValueError,
            r"takes mean_key of shape \(1, 7, 2, 64\): it has shape \(1, 6, 2, 64\)",
        ),
        refused(
            {"mean_key": torch.zeros(1, 7, 2, 64).half(), "mean_value": torch.zeros(1, 7, 2, 64)},
            TypeError,
            "takes mean_key as float32: it is float16",
        ),
        refused(
            {"prior": torch.zeros(1, 24, 2, 64).bfloat16(), "prior_lse": torch.zeros(1, 2, 24)},
            TypeError,
            "takes prior as float32: it is bfloat16",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(change, error, message):
    with pytest.raises(error, match=message):
        Problem().run("cpu", **change)


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        (
            "query",
            lambda x: x[..., :60],
            ValueError,
            "takes head sizes that are multiples of 8 up to 128: query has 60",
        ),
        ("query", lambda x: x[0], ValueError, r"takes tensors of shape \(batch, .* query has shape \(24, 2, 64\)"),
        ("query", lambda x: x[:, :, :1], ValueError, "takes query and key of one batch .*"),
        ("query", lambda x: x.double(), TypeError, "takes one dtype: query is float64, key is float32; .*"),
        ("query", lambda x: x[:, :0], ValueError, "takes sequences of one token or more: .*"),
        ("value", lambda x: x[..., :32], ValueError, "takes one shape: .*"),
        ("blocks", lambda x: x.long(), TypeError, "takes blocks as int32: it is int64"),
        ("blocks", lambda x: x[:, :, :1], ValueError, r"takes blocks of shape \(1, 2, 2, 3\): .* \(1, 2, 1, 3\)"),
        ("counts", lambda x: x[:, :1], ValueError, r"takes counts of shape \(1, 2, 2\): it has shape \(1, 1, 2\)"),
    ],
)
def test_wrong_tensors_are_refused_in_one_line(name, change, error, message):
    problem = Problem()
    setattr(problem, name, change(getattr(problem, name)))
    with pytest.raises(error, match=f"^block_attention {message}$"):
        problem.run("cpu")


def test_float64_is_for_the_reference_alone():
    wide = torch.zeros(1, 20, 1, 64, dtype=torch.float64)
    with use("reference"):
        assert dense_attention(wide, wide, wide)[1].dtype == torch.float64
    with pytest.raises(
        TypeError, match=r"^dense_attention takes float64 in the reference form alone: query is float64$"
    ):
        dense_attention(wide, wide, wide)
