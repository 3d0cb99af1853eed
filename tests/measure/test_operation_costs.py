"""What operations have to do, worked out by hand, from the shapes that the profiler records."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from accel.kernels.block_attention import dense_attention
from accel.kernels.delta import apply_delta, compute_delta, update_delta
from accel.kernels.int8 import int8_linear, quantize_int8
from accel.kernels.nvfp4 import quantize_nvfp4
from accel.kernels.nvfp4_linear import nvfp4_weight_linear
from accel.measure.operation_costs import costs


def counted(work):
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        work()
    return costs(profiler.profiler.kineto_results.events())


def test_products_are_counted_and_their_calls_added_up():
    x, weight, bias = torch.randn(2, 8, 32), torch.randn(16, 32), torch.randn(16)

    def work():
        for _ in range(3):
            torch.nn.functional.linear(x, weight, bias)
        torch.bmm(x.bfloat16(), x.bfloat16().transpose(1, 2))

    found = counted(work)
    assert found["aten::addmm"].flops == 3 * 2 * 16 * 32 * 16
    assert found["aten::addmm"].moved == 3 * 4 * (16 * 32 + 32 * 16 + 16 + 16 * 16)
    assert (found["aten::bmm"].flops, found["aten::bmm"].moved) == (
        2 * 2 * 8 * 8 * 32,
        2 * (2 * 2 * 8 * 32 + 2 * 8 * 8),
    )


def test_attention_of_torch_and_of_ours_is_the_same():
    query, key = torch.randn(1, 3, 40, 64), torch.randn(1, 3, 24, 64)
    found = counted(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key))
    theirs = found["aten::_scaled_dot_product_flash_attention_for_cpu"]
    assert theirs.flops == 4 * 3 * 40 * 24 * 64 and theirs.moved == 4 * 3 * 64 * (40 + 24 + 24 + 40)
    rows = [one.transpose(1, 2).contiguous() for one in (query, key, key)]
    assert counted(lambda: dense_attention(*rows))["accel::dense_attention"] == theirs


def test_deltas_move_bytes_alone():
    x, held = torch.randn(1, 64, 32), torch.randn(1, 64, 32).bfloat16()

    def work():
        compute_delta(x, x)
        update_delta(x, x, held, None, 1)
        apply_delta(x, held, held, 2.0)

    found = counted(work)
    whole, half = 4 * 64 * 32, 2 * 64 * 32
    assert [found[f"accel::{name}_delta"].moved for name in ("compute", "update", "apply")] == [
        3 * whole, 2 * whole + 3 * half, 2 * whole + 2 * half,
    ]  # fmt: skip
    assert {one.flops for one in found.values()} == {None}


def test_linears_in_other_formats_have_the_operations_of_their_rows():
    x, weight = torch.randn(64, 128), torch.randn(32, 128)
    codes, scale = quantize_int8(x)
    stored, stored_scale = quantize_int8(weight)
    packed = quantize_nvfp4(weight)

    def work():
        int8_linear(codes, scale, stored, stored_scale)
        nvfp4_weight_linear(x, *packed)

    found = counted(work)
    ours, theirs = found["accel::int8_linear"], found["accel::nvfp4_weight_linear"]
    assert ours.flops == theirs.flops == 2 * 64 * 128 * 32
    assert ours.moved is None, "the call does not tell the format of the result"
    assert theirs.moved == pytest.approx(4 * (64 * 128 + 64 * 32) + 32 * 64 + 32 * 8 + 4)
