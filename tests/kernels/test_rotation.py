"""rotate: every form bit for bit against the reference, and the reference against the matrix H in float64."""

import pytest
import torch

from accel.kernels.rotation import BLOCK, reference, rotate

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}


def hadamard() -> torch.Tensor:
    """H by its definition: the sign of (i, j) is the parity of the bits that both numbers have."""
    signs = [[1 - 2 * ((i & j).bit_count() % 2) for j in range(BLOCK)] for i in range(BLOCK)]
    return torch.tensor(signs, dtype=torch.float64)


@pytest.fixture
def make(device, guarded):
    generator = torch.Generator().manual_seed(3)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return guarded(torch.randn(shape, generator=generator).to(dtype).to(device))

    return make


def test_the_matrix(device):
    """One row for each channel: what comes back is H, whose products with its own transpose are 128."""
    made = rotate(torch.eye(BLOCK, device=device)).double().cpu()
    assert torch.equal(made, hadamard())
    assert torch.equal(made @ made.T, BLOCK * torch.eye(BLOCK, dtype=torch.float64))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("shape", [(0, 128), (3, 0), (1, 128), (17, 128), (33, 384)])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_form_gives_the_same_bits(make, dtype, shape):
    x = make(*shape, dtype=dtype)
    for scale, wanted in ((1.0, None), (1 / BLOCK, torch.bfloat16), (0.3, torch.float32)):
        result = rotate(x, scale, wanted)
        assert result.is_contiguous() and result.device == x.device
        expected = reference.rotate(x.cpu(), scale, wanted or dtype)
        assert result.dtype == expected.dtype and torch.equal(result.cpu(), expected)


def test_strided_rows(make):
    x = make(6, 300)
    for view in (x[:, 20:276], x[::2, :256], make(256, 5).T):
        assert torch.equal(rotate(view), rotate(view.contiguous()))


def test_against_the_product_in_float64(make):
    x = make(9, 256)
    exact = (x.cpu().double().view(9, 2, BLOCK) @ hadamard()).flatten(1)
    assert (rotate(x).cpu().double() - exact).norm() < 1e-6 * exact.norm()


def test_integers_are_exact_and_come_back(device):
    x = torch.randint(-1023, 1024, (5, 256), generator=torch.Generator().manual_seed(1)).float().to(device)
    assert torch.equal(rotate(rotate(x), 1 / BLOCK), x)


def test_a_product_keeps_its_value(device):
    generator = torch.Generator().manual_seed(2)
    x, weight = (torch.randint(-8, 9, (rows, 256), generator=generator).float().to(device) for rows in (7, 5))
    rotated = rotate(x).double() @ rotate(weight, 1 / BLOCK).double().T
    assert torch.equal(rotated, x.double() @ weight.double().T)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_its_block(device, value):
    x = torch.ones(2, 256, device=device)
    x[1, 130] = value
    finite = rotate(x).isfinite()
    assert finite[0].all() and finite[1, :BLOCK].all() and not finite[1, BLOCK:].any()


def test_registration(make):
    torch.library.opcheck(torch.ops.accel.rotate.default, (make(3, 128), 0.5, torch.float16))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: rotate(torch.ones(2, 100)),
            ValueError,
            "^rotate rotates blocks of 128 channels: x has 100; leave it unrotated$",
        ),
        (lambda: rotate(torch.ones(128)), ValueError, r"^rotate takes matrices: x has the shape \(128,\)$"),
        (
            lambda: rotate(torch.ones(2, 128).int()),
            TypeError,
            "^rotate takes float16, bfloat16, float32 or float64 tensors: x is int32$",
        ),
        (
            lambda: rotate(torch.ones(2, 128), dtype=torch.int8),
            TypeError,
            "^rotate takes float16, bfloat16, float32 or float64 tensors: result is int8$",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(call, error, message):
    with pytest.raises(error, match=message):
        call()
