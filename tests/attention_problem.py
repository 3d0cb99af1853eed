"""Random arguments of block_attention, what it must answer in float64, and how near it must come."""

import math

import torch
from torch import Tensor

from accel.kernels.block_attention import block_attention
from accel.kernels.block_statistics import reference as statistics
from accel.kernels.forms import use

# The largest relative error (root mean square) of an output, and the largest error of a log-sum-exp.
BOUNDS = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (1e-2, 1e-2)}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# What is attended to besides the lists.
VARIANTS = {
    "listed": (),
    "zeroth": ("tail",),
    "hybrid": ("tail", "first_order"),
    "prior": ("prior",),
    "all": ("tail", "first_order", "prior"),
}
BLOCK = 16


SIZES = torch.tensor([[16, 16, 7, 16, 0, 3, 8], [16, 0, 16, 16, 16, 1, 8]], dtype=torch.int32)


class Problem:
    """The arguments of one call: random, with lists of random lengths, in the order query, key, value, ..."""

    def __init__(
        self,
        *,
        batch: int | None = None,
        length: int = 24,
        keys: int = 104,
        heads: int = 2,
        key_heads: int = 2,
        size: int = 64,
        dtype: torch.dtype = torch.float32,
        variant: str = "listed",
        sizes: Tensor | None = None,
        seed: int = 3,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        batch = batch or (1 if sizes is None else len(sizes))
        rows, self.number = -(-length // BLOCK), -(-keys // BLOCK)
        self.sizes = sizes
        self.query = self.random(batch, length, heads, size).to(dtype)
        self.key = self.random(batch, keys, key_heads, size).to(dtype)
        self.value = self.random(batch, keys, key_heads, size).to(dtype)
        order = torch.rand(batch, heads, rows, self.number, generator=self.generator).argsort(-1)
        self.blocks = order[..., : max(1, self.number // 2)].int()
        self.counts = torch.randint(0, self.blocks.shape[-1] + 1, (batch, heads, rows), generator=self.generator).int()
        self.beside: dict[str, Tensor] = {}
        if "tail" in VARIANTS[variant]:
            self.add_tail("first_order" in VARIANTS[variant])
        if "prior" in VARIANTS[variant]:
            prior_lse = self.random(batch, heads, length) + 2.0
            prior_lse[0, 0, :5] = -math.inf
            self.beside |= {"prior": self.random(batch, length, heads, size), "prior_lse": prior_lse}

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def add_tail(self, first_order: bool) -> None:
        mean_key, mean_value, matrix, _ = statistics.block_statistics(
            self.key, self.value, BLOCK, self.sizes, first_order, False
        )
        self.beside |= {"mean_key": mean_key, "mean_value": mean_value}
        if first_order:
            self.beside["first_order"] = matrix

    def run(self, device: str, **changes: object) -> tuple[Tensor, Tensor]:
        sequences = [x.to(device) for x in (self.query, self.key, self.value, self.blocks, self.counts)]
        options = {"block_size": BLOCK, "sizes": self.sizes, **self.beside, **changes}
        moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in options.items()}
        return block_attention(*sequences, **moved)

    def exact(self, **changes: object) -> tuple[Tensor, Tensor]:
        """What the specification gives in float64."""
        sequences = [x.double() for x in (self.query, self.key, self.value)]
        options = {"block_size": BLOCK, "sizes": self.sizes, **self.beside, **changes}
        wide = {
            name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in options.items()
        }
        with use("reference"):
            return block_attention(*sequences, self.blocks, self.counts, **wide)


def relative(value: Tensor, wanted: Tensor) -> float:
    difference = value.cpu().double() - wanted.cpu().double()
    size = wanted.cpu().double().square().mean().sqrt()
    return float(difference.square().mean().sqrt() / torch.where(size > 0, size, 1.0))


def assert_near(result: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    (out, lse), (wanted_out, wanted_lse) = result, wanted
    bound, lse_bound = BOUNDS[dtype]
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert out.is_contiguous() and out.shape == wanted_out.shape and lse.shape == wanted_lse.shape
    assert relative(out, wanted_out) < bound
    lse, nothing = lse.cpu().double(), wanted_lse == -math.inf
    assert torch.equal(lse == -math.inf, nothing)
    error = (lse - wanted_lse)[~nothing].abs() / wanted_lse[~nothing].abs().clamp(min=1.0)
    assert not lse.isnan().any() and not (error > lse_bound).any()
    assert not out.cpu().transpose(1, 2)[nothing].any()


def same_bits(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) and not a.isnan().any() for a, b in zip(left, right, strict=True))


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    query, key, value = (x.double().transpose(1, 2) for x in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    return out.transpose(1, 2), torch.logsumexp(query @ key.mT / query.shape[-1] ** 0.5, -1)
