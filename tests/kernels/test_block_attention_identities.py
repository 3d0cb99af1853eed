"""What block_attention must give whatever the form: identities of the method, against dense attention in float64."""

import importlib
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from accel.kernels.block_attention import dense_attention
from tests.attention_problem import BLOCK, DTYPES, SIZES, Problem, assert_near, relative, sdpa


def test_the_reference_is_the_formula():
    """The sums of the docstring, term by term and without a maximum."""
    problem = Problem(length=20, keys=70, heads=4, variant="all", sizes=SIZES[:1, :5])
    scale = 0.1
    out, lse = problem.exact(scale=scale)
    beside = {name: x.double() for name, x in problem.beside.items()}
    q, k, v = (x.double() for x in (problem.query, problem.key, problem.value))
    for head in range(4):
        of = head // 2
        for row in range(20):
            block = row // BLOCK
            listed = problem.blocks[0, head, block, : problem.counts[0, head, block]].tolist()
            known = beside["prior_lse"][0, head, row].exp()
            numerator = known * beside["prior"][0, row, head]
            denominator = known.clone()
            for j, size in enumerate(SIZES[0, :5].clamp(max=70).tolist()):
                if j == 4:
                    size = min(size, 70 - 4 * BLOCK)
                if j in listed:
                    for n in range(j * BLOCK, j * BLOCK + size):
                        weight = (scale * q[0, row, head] @ k[0, n, of]).exp()
                        numerator, denominator = numerator + weight * v[0, n, of], denominator + weight
                elif size:
                    mass = size * (scale * q[0, row, head] @ beside["mean_key"][0, j, of]).exp()
                    first = scale * q[0, row, head] @ beside["first_order"][0, of]
                    numerator = numerator + mass * (beside["mean_value"][0, j, of] + first)
                    denominator = denominator + mass
            assert torch.allclose(out[0, row, head], numerator / denominator, rtol=1e-11, atol=1e-12)
            assert torch.allclose(lse[0, head, row], denominator.log(), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("keys", [96, 107], ids=["whole", "ragged"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_full_lists_are_dense_attention(device, dtype, keys):
    problem = Problem(keys=keys, dtype=dtype, variant="hybrid")
    problem.blocks = torch.arange(problem.number, dtype=torch.int32).flip(0).expand(*problem.counts.shape, -1)
    problem.counts = torch.full_like(problem.counts, problem.number)
    wanted = sdpa(problem.query, problem.key, problem.value)
    assert_near(problem.run(device), wanted, dtype)
    sequences = [x.to(device) for x in (problem.query, problem.key, problem.value)]
    assert_near(dense_attention(*sequences, block_size=BLOCK), wanted, dtype)


@pytest.mark.parametrize("key_heads", [1, 2])
def test_dense_attention_with_padding(device, key_heads):
    problem = Problem(heads=2, key_heads=key_heads, sizes=SIZES)
    for row, sizes in enumerate(SIZES.tolist()):
        valid = [j * BLOCK + n for j, size in enumerate(sizes) for n in range(size)]
        mask = torch.ones(104, dtype=torch.bool)
        mask[valid] = False
        problem.key[row, mask], problem.value[row, mask] = math.nan, math.inf
        sequences = [x[row : row + 1].to(device) for x in (problem.query, problem.key, problem.value)]
        repeated = [x[row : row + 1, valid].repeat_interleave(2 // key_heads, 2) for x in (problem.key, problem.value)]
        result = dense_attention(*sequences, sizes=SIZES[row : row + 1].to(device), block_size=BLOCK)
        assert_near(result, sdpa(problem.query[row : row + 1], *repeated), torch.float32)


@pytest.mark.parametrize("variant", ["zeroth", "all"])
def test_the_tail_does_not_depend_on_its_groups(device, monkeypatch, variant):
    """The lists hold the blocks of least weight, and every later block of the tail weighs more than those before."""
    problem = Problem(length=32, keys=40 * BLOCK, variant="listed")
    direction = problem.random(64)
    steps = torch.arange(40.0).repeat_interleave(BLOCK)[:, None, None]
    problem.key = 0.3 * problem.key + steps * direction / direction.norm()
    problem.query = problem.query + 8.0 * direction / direction.norm()
    problem.blocks = torch.arange(3, dtype=torch.int32).expand(*problem.counts.shape, -1).contiguous()
    problem.counts = torch.full_like(problem.counts, 3)
    problem.add_tail(variant == "all")
    if variant == "all":
        lse = torch.full((1, 2, 32), -3.0)
        problem.beside |= {"prior": problem.random(*problem.query.shape), "prior_lse": lse}
    wanted = problem.exact()
    assert_near(problem.run(device), wanted, torch.float32)
    form = importlib.import_module("accel.kernels.block_attention.triton")
    tile_for = form.tile_for
    for tokens in (16, 64):

        def cut(*arguments: object, tokens: int = tokens) -> object:
            head, tile = tile_for(*arguments)
            return head, replace(tile, tokens=tokens)

        monkeypatch.setattr(form, "tile_for", cut)
        assert_near(problem.run(device), wanted, torch.float32)


def test_equal_keys_inside_blocks_make_the_zeroth_tail_exact(device):
    problem = Problem()
    problem.key = problem.key[:, ::BLOCK].repeat_interleave(BLOCK, 1)[:, :104]
    problem.add_tail(False)
    assert_near(problem.run(device), sdpa(problem.query, problem.key, problem.value), torch.float32)


def test_equal_values_come_back_whatever_is_approximated(device):
    problem = Problem(variant="listed")
    problem.value = problem.random(1, 1, 2, 64).expand(1, 104, 2, 64)
    problem.add_tail(True)
    out, _ = problem.run(device)
    assert relative(out, problem.value[:, :24]) < 1e-5


def test_a_shift_of_all_keys_changes_nothing_but_the_lse(device):
    problem = Problem(variant="hybrid")
    out, _ = problem.run(device)
    problem.key = problem.key + problem.random(1, 1, 2, 64)
    problem.add_tail(True)
    assert relative(problem.run(device)[0], out.cpu()) < 1e-5


def test_the_order_of_keys_inside_a_block_does_not_matter(device):
    problem = Problem(keys=96, variant="hybrid")
    out, lse = problem.run(device)
    shuffle = torch.arange(96).view(-1, BLOCK)[:, torch.randperm(BLOCK, generator=problem.generator)].flatten()
    problem.key, problem.value = problem.key[:, shuffle], problem.value[:, shuffle]
    problem.add_tail(True)
    shuffled = problem.run(device)
    assert relative(shuffled[0], out.cpu()) < 1e-5 and relative(shuffled[1], lse.cpu()) < 1e-6


def tail_error(problem: Problem, radius: float, **changes: object) -> float:
    """The error of a tail over all blocks whose keys lie within `radius` of their mean."""
    means = problem.key[:, ::BLOCK].repeat_interleave(BLOCK, 1)[:, : problem.key.shape[1]]
    kept, problem.key = problem.key, means + radius * (problem.key - means)
    problem.add_tail(True)
    problem.counts = torch.zeros_like(problem.counts)
    wanted = sdpa(problem.query, problem.key, problem.value)
    error = relative(problem.exact(**changes)[0], wanted[0])
    # The approximated denominator is too small in every row.
    assert (problem.exact(**changes)[1] <= wanted[1] + 1e-6).all()
    problem.key = kept
    return error


def test_errors_grow_with_the_radius_of_blocks_and_the_first_order_takes_some_away():
    problem = Problem(keys=96)
    # Values that follow the keys give all blocks a matrix in common.
    problem.value = problem.key @ problem.random(64, 64) / 8 + 0.5 * problem.value
    radii = (0.2, 0.1, 0.05)
    zeroth = [tail_error(problem, radius, first_order=None) for radius in radii]
    hybrid = [tail_error(problem, radius) for radius in radii]
    assert all(one < other for one, other in zip(hybrid, zeroth, strict=True))
    for larger, smaller in (*pairwise(zeroth), *pairwise(hybrid)):
        assert 1.7 < larger / smaller < 2.6


def test_the_hybrid_is_of_second_order_when_all_blocks_have_one_matrix():
    problem = Problem(keys=6 * BLOCK)
    centres = problem.random(1, 6, 1, 2, 64).expand(-1, -1, BLOCK, -1, -1).reshape(1, -1, 2, 64)
    offsets = problem.random(1, BLOCK, 2, 64)
    offsets = (offsets - offsets.mean(1, keepdim=True)).repeat(1, 6, 1, 1)
    problem.value = centres.flip(1) + offsets
    problem.counts = torch.zeros_like(problem.counts)
    errors = []
    for radius in (0.1, 0.05):
        problem.key = centres + radius * offsets
        problem.add_tail(True)
        errors.append(relative(problem.exact()[0], sdpa(problem.query, problem.key, problem.value)[0]))
    assert 3.3 < errors[0] / errors[1] < 4.8


def test_the_tail_is_better_than_leaving_blocks_out():
    """Keys and values that change smoothly along the sequence, at one density."""
    problem = Problem(length=64, keys=256)
    places = torch.arange(256.0)[:, None] / 256
    waves = torch.sin(2 * math.pi * (places * torch.arange(1, 33) / 4 + torch.rand(32, generator=problem.generator)))
    problem.key = (waves @ problem.random(32, 128) / 4).view(1, 256, 2, 64)
    problem.value = (waves @ problem.random(32, 128) / 4).view(1, 256, 2, 64)
    problem.query = problem.key[:, ::4]
    problem.add_tail(True)
    means = problem.query.view(1, -1, BLOCK, 2, 64).mean(2)
    scores = torch.einsum("bihd,bjhd->bhij", means, problem.beside["mean_key"])
    problem.blocks = scores.topk(4, -1).indices.int()
    problem.counts = torch.full_like(problem.counts, 4)
    wanted, _ = sdpa(problem.query, problem.key, problem.value)
    nothing = {"mean_key": None, "mean_value": None, "first_order": None}
    dropped = relative(problem.exact(**nothing)[0], wanted)
    zeroth = relative(problem.exact(first_order=None)[0], wanted)
    hybrid = relative(problem.exact()[0], wanted)
    assert hybrid < zeroth < 0.5 * dropped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_prior_is_the_attention_over_other_blocks(device, dtype):
    """Three parts of the keys one after the other, one of them empty, are attention over all of them."""
    problem = Problem(dtype=dtype)
    order = torch.arange(7, dtype=torch.int32).expand(*problem.counts.shape, -1).contiguous()
    everything = problem.counts.shape
    result = None
    for first, last in ((0, 0), (0, 3), (3, 7)):
        problem.blocks = order.roll(-first, -1)
        problem.counts = torch.full(everything, last - first, dtype=torch.int32)
        beside = {} if result is None else {"prior": result[0].float(), "prior_lse": result[1]}
        result = problem.run(device, **beside)
    assert_near(result, sdpa(problem.query, problem.key, problem.value), dtype)


def test_a_prior_of_nothing_may_hold_anything(device):
    problem = Problem()
    wanted = problem.run(device)
    prior = torch.full_like(problem.query, math.nan)
    assert_near(
        problem.run(device, prior=prior, prior_lse=torch.full((1, 2, 24), -math.inf)),
        problem.exact(),
        torch.float32,
    )
    problem.counts = torch.zeros_like(problem.counts)
    out, lse = problem.run(device, prior=problem.query, prior_lse=wanted[1].cpu().nan_to_num(neginf=1.0))
    assert relative(out, problem.query) < 1e-6
    assert torch.allclose(lse, wanted[1].nan_to_num(neginf=1.0), atol=1e-5)


def test_grouped_heads_are_repeated_heads(device):
    problem = Problem(heads=4, key_heads=2, keys=72, variant="hybrid")
    grouped = problem.run(device)
    problem.key, problem.value = (x.repeat_interleave(2, 2) for x in (problem.key, problem.value))
    problem.add_tail(True)
    assert_near(problem.run(device), tuple(x.cpu().double() for x in grouped), torch.float32)
