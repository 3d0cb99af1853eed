"""The operation under the quantized linears: its contract with torch, and the same bits in every form."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from accel.kernels.forms import use
from accel.kernels.int8 import quantize_int8
from accel.kernels.nvfp4 import quantize_nvfp4
from accel.kernels.quantized_linear import ACTIVATIONS, SEEN, emulation, quantized_linear, stored_weight
from accel.kernels.rotation import BLOCK, rotate

GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(3, 7, 256, generator=GENERATOR)
WEIGHT = torch.randn(24, 256, generator=GENERATOR)
BIAS = torch.randn(24, generator=GENERATOR)
ONE = torch.ones(())


def state(activation: str, look: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    measured = ACTIVATIONS.index("nvfp4") if look else -1
    route = torch.tensor([ACTIVATIONS.index(activation), look, measured])  # type: ignore[arg-type]
    return route, torch.zeros(len(ACTIVATIONS), dtype=torch.int64), torch.zeros(len(SEEN))


def weight(kind: str, rotated: bool) -> tuple[Tensor, ...]:
    held = rotate(WEIGHT, 1 / BLOCK) if rotated else WEIGHT
    return quantize_int8(held) if kind == "int8" else quantize_nvfp4(held, by_error=True)


@pytest.mark.parametrize(("kind", "activation"), [("int8", "int8"), ("nvfp4", "int8"), ("nvfp4", "nvfp4")])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_product_is_that_of_the_stored_numbers(kind: str, activation: str, rotated: bool) -> None:
    """Within what the activations alone lose, in float64: 1/254 of a row's largest number, or 3/17 of a group's."""
    stored = weight(kind, rotated)
    result = quantized_linear(X, stored, BIAS, ONE, rotated, *state(activation))
    numbers = stored_weight(stored, rotated, torch.float64)
    exact = X.double() @ numbers.T + BIAS.double()
    assert result.shape == exact.shape
    assert (result - exact).norm() / exact.norm() < (0.013 if activation == "int8" else 0.11)
    plain = quantized_linear(X, stored, BIAS, ONE, rotated, *state("plain"))
    assert (plain - exact).norm() / exact.norm() < 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_reference_gives_the_same(activation: str) -> None:
    results = []
    for form in ("cpu", "reference"):
        with use(form):  # type: ignore[arg-type]
            results.append(quantized_linear(X, weight("nvfp4", True), BIAS, ONE, True, *state(activation)))
    # Integer sums are exact; the others are in float32, and the reference's in float64.
    assert (results[0] - results[1]).norm() / results[1].norm() <= (0 if activation == "int8" else 1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_an_operation_as_torch_wants_it(activation: str) -> None:
    operation = torch.ops.accel.quantized_linear.default
    arguments = (X, *weight("nvfp4", True), BIAS, ONE, True, *state(activation, 1))
    # The check of the schema compares inputs by arithmetic that float8 does not have.
    torch.library.opcheck(operation, arguments, test_utils=("test_faketensor", "test_aot_dispatch_dynamic"))
    if activation != "nvfp4":
        torch.library.opcheck(operation, (X, *weight("int8", True), None, BIAS, ONE, True, *state(activation)))


def test_what_ran_and_what_was_seen_is_written_down() -> None:
    route, ran, seen = state("nvfp4", 1)
    for x in (X, 2 * X):
        quantized_linear(x, weight("nvfp4", False), None, ONE, False, route, ran, seen)
    assert ran.tolist() == [0, 2, 0]
    assert seen[0] == 0 and seen[1] == (2 * X.abs().max() / 6).to(torch.float8_e4m3fn).float()
    torch.testing.assert_close(seen[2], X.abs().max() / X.abs().mean())
    # A route is read when the operation runs: no other call is needed to change it.
    route[0] = ACTIVATIONS.index("int8")
    quantized_linear(X, weight("nvfp4", False), None, ONE, False, route, ran, seen)
    assert ran.tolist() == [0, 2, 1]


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_what_is_seen_piece_by_piece_is_what_is_seen_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, rotated: bool, dtype: torch.dtype
) -> None:
    """Here of 8 rows at a time, the last piece a smaller one; a NaN stays one, whichever piece has it."""
    x = X.to(dtype)
    broken = x.clone()
    broken[2, 6, 5] = torch.nan
    stored, found = weight("nvfp4", rotated), []
    for rows in (4096, 8):
        monkeypatch.setattr("accel.kernels.quantized_linear._ROWS", rows)
        for numbers in (x, broken):
            route, ran, seen = state("int8", 2)
            quantized_linear(numbers, stored, BIAS, ONE, rotated, route, ran, seen)
            found.append(seen[2:])
    whole, whole_broken, pieces, pieces_broken = found
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=0)
    assert whole.isfinite().all() and whole_broken.isnan().all() and pieces_broken.isnan().all()
    flat = rotate(x.reshape(-1, 256), dtype=torch.float32) if rotated else x
    assert whole[2] == flat.abs().max().float()
    torch.testing.assert_close(whole[3], x.abs().float().mean())


def test_no_rows_and_one_row() -> None:
    for rows in (0, 1):
        for activation in ACTIVATIONS:
            result = quantized_linear(X[0, :rows], weight("nvfp4", True), BIAS, ONE, True, *state(activation, 1))
            assert result.shape == (rows, 24) and result.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_result_has_the_dtype_of_the_activations(dtype: torch.dtype) -> None:
    for activation in ACTIVATIONS:
        result = quantized_linear(X.to(dtype), weight("nvfp4", True), BIAS, ONE, True, *state(activation))
        wide = quantized_linear(X, weight("nvfp4", True), BIAS, ONE, True, *state(activation))
        assert result.dtype == dtype
        assert (result.float() - wide).norm() / wide.norm() < 0.05


NVFP4_EMULATED = "NVFP4 activations are emulated on {}: rounded, decoded and then multiplied"
NOT_FAST = "INT8 has no fast instructions on "


@pytest.mark.parametrize(
    ("device", "capability", "amd", "triton", "int8", "nvfp4"),
    [
        ("cuda", (8, 0), None, "3.7.1", None, NVFP4_EMULATED.format("sm_80")),
        ("cuda", (9, 0), None, "3.7.1", None, NVFP4_EMULATED.format("sm_90")),
        ("cuda", (10, 0), None, "3.7.1", f"{NOT_FAST}sm_100 with Triton 3.7.1: it has with 3.9", None),
        ("cuda", (10, 0), None, "3.9.0", None, None),
        ("cuda", (10, 0), None, "3.10.0+git1", None, None),
        ("cuda", (10, 3), None, "3.9.0", f"{NOT_FAST}sm_103", None),
        ("cuda", (11, 0), None, "3.9.0", f"{NOT_FAST}sm_110", NVFP4_EMULATED.format("sm_110")),
        ("cuda", (12, 0), None, "3.7.1", None, None),
        ("cuda", (12, 0), "gfx1200", "3.7.1", None, NVFP4_EMULATED.format("gfx1200")),
        ("cuda", (10, 3), "gfx1030:xnack-", "3.7.1", None, NVFP4_EMULATED.format("gfx1030")),
        ("xpu", None, None, "3.7.1", None, NVFP4_EMULATED.format("xpu")),
        (
            "mps",
            None,
            None,
            "3.7.1",
            "INT8 has no fast form on mps: its products are made in float64",
            NVFP4_EMULATED.format("mps"),
        ),
    ],
)
def test_what_each_device_lacks_is_said(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    capability: tuple[int, int] | None,
    amd: str | None,
    triton: str,
    int8: str | None,
    nvfp4: str | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda asked: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda asked: SimpleNamespace(gcnArchName=amd))
    monkeypatch.setattr(torch.version, "hip", "7.0" if amd else None)
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", triton)
    assert emulation("int8", "int8", torch.device(device)) == int8
    assert emulation("nvfp4", "nvfp4", torch.device(device)) == nvfp4
    assert "decoded in each product on" in str(emulation("plain", "nvfp4", torch.device(device)))
