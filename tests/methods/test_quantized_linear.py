"""One linear with a stored weight: its error, its bytes, and what others may do to it."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_layerwise_casting
from torch import nn

from accel.errors import AccelError
from accel.kernels.nvfp4 import nvfp4_to_int8, swizzle_scales
from accel.kernels.quantized_linear import ACTIVATIONS, Activation
from accel.methods.converted_linear import revert
from accel.methods.quantized_linear import QuantizedLinear
from accel.methods.weight_bytes import WeightFormat, scratch_bytes, stored_bytes
from tests.methods.quantized import linear, quantized

GENERATOR = torch.Generator().manual_seed(0)
GAUSSIAN = torch.randn(512, 256, generator=GENERATOR)
SPIKES = GAUSSIAN * torch.where(torch.arange(256) % 100 == 7, 100.0, 1.0)
# With the channels of a model, since a row's largest magnitude grows with them.
WIDE = torch.randn(256, 3072, generator=GENERATOR)
WIDE_SPIKES = WIDE * torch.where(torch.arange(3072) % 1000 == 7, 100.0, 1.0)

# |Y - Y'| / |Y| on Gaussian numbers. Round trips lose 0.0085 in INT8, 0.0951 in NVFP4 and 0.0870 where the scales are
# chosen by error, as for weights; independent errors add in squares.
ERRORS: list[tuple[WeightFormat, Activation, float, float]] = [
    ("int8", "int8", 0.011, 0.013),
    ("int8", "plain", 0.0075, 0.0095),
    ("nvfp4", "plain", 0.084, 0.090),
    ("nvfp4", "int8", 0.085, 0.091),
    ("nvfp4", "nvfp4", 0.125, 0.132),
]


def error(x: torch.Tensor, layer: nn.Linear, weight: WeightFormat, activation: Activation, rotated: bool) -> float:
    exact = layer(x)
    module = quantized(copy.deepcopy(layer), weight, rotated=rotated)
    module.choose(activation)
    assert module.route.tolist() == [ACTIVATIONS.index(activation), 0, -1]
    result = module(x)
    assert module.ran.tolist() == [int(name == activation) for name in ACTIVATIONS]
    return ((result - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(("weight", "activation", "least", "most"), ERRORS)
@pytest.mark.parametrize("rotated", [False, True])
def test_error_on_gaussian_numbers(
    weight: WeightFormat, activation: Activation, least: float, most: float, rotated: bool
) -> None:
    assert least < error(WIDE, linear(256, 3072, bias=False), weight, activation, rotated) < most


def test_int8_needs_the_rotation_where_channels_stand_out() -> None:
    plain, rotated = (error(WIDE_SPIKES, linear(256, 3072, bias=False), "int8", "int8", r) for r in (False, True))
    assert plain > 0.06 and rotated < 0.02


@pytest.mark.parametrize("weight", ["int8", "nvfp4"])
@pytest.mark.parametrize("rotated", [False, True])
def test_undo_gives_back_the_very_linear(weight: WeightFormat, rotated: bool) -> None:
    layer = linear()
    parameters, attributes, plain = dict(layer.named_parameters()), sorted(vars(layer)), layer(GAUSSIAN)
    bits = {name: value.clone() for name, value in parameters.items()}
    module = quantized(layer, weight, rotated=rotated)
    assert module is layer and isinstance(layer, nn.Linear) and type(layer) is not nn.Linear
    layer(GAUSSIAN)
    revert(module)
    assert type(layer) is nn.Linear and sorted(vars(layer)) == attributes
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    for name, parameter in layer.named_parameters():
        assert parameter is parameters[name] and torch.equal(parameter, bits[name])
    assert not list(layer.buffers())
    assert torch.equal(layer(GAUSSIAN), plain)


@pytest.mark.parametrize("weight", ["int8", "nvfp4"])
def test_bytes_are_those_of_the_formula(weight: WeightFormat) -> None:
    for outputs, channels in ((128, 256), (7, 48), (1, 16)):
        module = quantized(linear(outputs, channels, bias=False), weight)
        held = (*module.buffers(), module.activation_scale)
        assert sum(tensor.nbytes for tensor in held) == stored_bytes(weight, outputs, channels)
        assert not list(module.parameters())
    transient = scratch_bytes("nvfp4", "int8", 128, 256, 4, "cpu")
    assert sum(part.nbytes for part in nvfp4_to_int8(*quantized(linear(), "nvfp4").stored)) == transient
    assert scratch_bytes("int8", "int8", 128, 256, 4, "cpu") == 0
    assert scratch_bytes("nvfp4", "nvfp4", 128, 256, 2, "triton") == scratch_bytes("nvfp4", "plain", 9, 16, 2, "triton")
    assert scratch_bytes("nvfp4", "plain", 128, 256, 2, "triton") == 0, "decoded in registers"
    assert scratch_bytes("nvfp4", "plain", 128, 256, 2, "native") == 0
    _, scales, _ = quantized(linear(129, 80), "nvfp4").stored
    found = allocations(lambda: swizzle_scales(scales))
    assert scratch_bytes("nvfp4", "nvfp4", 129, 80, 2, "native") == max(itertools.accumulate(found)) == 2 * 4 * 512


# Numbers that a CPU has on the way, of 12 bytes each at most.
ON_THE_WAY = 12 * (1 << 17)


@pytest.mark.parametrize(
    ("weight", "activation", "largest"),
    [
        # Of 2048 rows, the decoded ones of a piece; the weight in INT8; and in float32.
        ("nvfp4", "nvfp4", 4 * (1 << 18)),
        ("nvfp4", "plain", 4 * (1 << 18)),
        ("nvfp4", "int8", 2048 * 1024),
        ("int8", "plain", 4 * 2048 * 1024),
        ("int8", "int8", 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scratch_is_what_is_allocated(
    weight: WeightFormat, activation: Activation, largest: int, dtype: torch.dtype
) -> None:
    """Of a weight that is larger than what is decoded at a time, beside activations of a single row."""
    module = quantized(linear(2048, 1024, bias=False, dtype=dtype), weight, rotated=True)
    module.choose(activation)
    x = torch.ones(1, 1024, dtype=dtype)
    found = allocations(lambda: module(x))
    counted = scratch_bytes(weight, activation, 2048, 1024, dtype.itemsize, "cpu")
    of_a_row = 64 * 1024
    assert counted <= max(itertools.accumulate(found)) <= counted + ON_THE_WAY + of_a_row
    assert max(found) <= of_a_row if largest == 0 else max(found) == largest


def allocations(call: Callable[[], object]) -> list[int]:
    """The bytes that are taken from memory (above 0) and given back (below) while something is called, in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


@pytest.mark.parametrize("weight", ["int8", "nvfp4"])
def test_scales_survive_a_change_of_dtype(weight: WeightFormat) -> None:
    module = quantized(linear(), weight)
    before = [part.clone() for part in module.stored]
    module.to(torch.bfloat16)
    for now, then in zip(module.stored, before, strict=True):
        assert now.dtype == then.dtype and torch.equal(now.float(), then.float())
    assert module(GAUSSIAN.bfloat16()).dtype == torch.bfloat16
    assert module.weight.dtype == torch.bfloat16, "what is loaded around it takes its dtype from here"
    revert(module)
    assert torch.equal(module.weight, linear().weight.bfloat16()), "as the plain linear would be"


def test_scales_survive_layerwise_casting() -> None:
    """The bias is stored in float8, as it would be in a plain linear; the stored weight is left alone."""
    model = nn.Sequential(linear(bias=False), linear(128, 128, bias=False))
    for layer in (model[0], model[1]):
        quantized(layer, "int8", rotated=True).choose("int8")
    expected = model(GAUSSIAN)
    apply_layerwise_casting(model, storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert torch.equal(model(GAUSSIAN), expected)
    for layer in model:
        revert(layer)
    model(GAUSSIAN)  # The hooks took the forward of the quantized linear.
    assert all(type(layer) is nn.Linear for layer in model)


def test_autocast_counts_for_it_as_for_a_linear() -> None:
    module = quantized(linear(), "nvfp4")
    module.choose("nvfp4")
    with torch.autocast("cpu", torch.bfloat16):
        result = module(GAUSSIAN)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, module(GAUSSIAN.bfloat16()))


def test_copies_and_saved_weights_are_those_of_the_original() -> None:
    model: Any = nn.Sequential(linear())
    expected = model(GAUSSIAN)
    quantized(model[0], "nvfp4", rotated=True)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin[0]) is nn.Linear and not list(twin.buffers())
        assert torch.equal(twin(GAUSSIAN), expected)
    fresh = nn.Sequential(nn.Linear(256, 128))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(GAUSSIAN), expected)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(fresh.state_dict())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_activations_that_are_not_finite_never_pass_in_silence(activation: Activation, value: float) -> None:
    module = quantized(linear(), "nvfp4")
    module.choose(activation)
    x = GAUSSIAN.clone()
    x[3, 5] = value
    result = module(x)
    assert not result[3].isfinite().any() if activation != "plain" else not result[3].isfinite().all()
    assert result[:3].isfinite().all() and result[4:].isfinite().all()
    if activation != "plain":
        assert module.seen[:2].isnan().any()


def test_outliers_are_looked_for_where_that_is_asked() -> None:
    module = quantized(linear(), "nvfp4")
    module.choose("int8")
    module(SPIKES)
    assert module.seen[2] == 0
    module.choose("int8", look=True)
    module(SPIKES)
    torch.testing.assert_close(module.seen[2], SPIKES.abs().amax() / SPIKES.abs().mean())


def test_the_error_of_a_format_is_measured_where_that_is_asked() -> None:
    module = quantized(linear(bias=False), "nvfp4")
    module.choose("int8", measure="nvfp4")
    result = module(GAUSSIAN)
    found = module.seen[3].item()
    assert module.ran.tolist() == [int(name == "int8") for name in ACTIVATIONS], "what is measured does not count"
    module.choose("int8")
    assert torch.equal(module(GAUSSIAN), result)
    products = {}
    for activation in ("plain", "nvfp4"):
        module.choose(activation)
        products[activation] = module(GAUSSIAN)
    error = (products["nvfp4"] - products["plain"]).norm() / products["plain"].norm()
    assert found == pytest.approx(error.item(), rel=1e-5) and 0.09 < found < 0.1


def test_what_has_no_product_is_refused() -> None:
    module = quantized(linear(), "int8")
    module.choose("nvfp4")
    with pytest.raises(ValueError, match="no product of NVFP4 activations with an INT8 weight"):
        module(GAUSSIAN)
    module.route.fill_(7)
    with pytest.raises(ValueError, match="routes 0 to 2"):
        module(GAUSSIAN)


def test_results_do_not_depend_on_the_rest_of_the_batch() -> None:
    module = quantized(linear(), "nvfp4", rotated=True)
    for activation in ("nvfp4", "int8"):
        module.choose(activation)
        alone, beside = module(GAUSSIAN[:64]), module(torch.cat([GAUSSIAN[:64], SPIKES[:64]]))[:64]
        torch.testing.assert_close(alone, beside, rtol=1e-6, atol=1e-5)


def test_a_dropped_original_is_not_copied(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    from accel.methods.converted_linear import convert
    from accel.methods.original_weights import WeightFile
    from accel.methods.quantized_linear import store

    layer = linear()
    save_file({"w": layer.weight.detach()}, tmp_path / "w.safetensors")
    expected = layer.weight.detach().clone()
    file = WeightFile.at(tmp_path / "w.safetensors", "w")
    module: QuantizedLinear = convert(layer, "int8", store(expected, "int8", False), rotated=False, file=file)
    with pytest.raises(AccelError, match="cannot be copied"):
        copy.deepcopy(layer)
    revert(module)
    assert torch.equal(layer.weight, expected)
