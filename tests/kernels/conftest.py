"""Fixtures for the tests of every operation: the forms to test, and memory that betrays a stray read."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch

from accel.kernels.forms import use

_FORMS = [
    pytest.param(("reference", "cpu"), id="reference"),
    pytest.param(("cpu", "cpu"), id="cpu"),
    pytest.param(("triton", "cpu"), id="triton-interpreted", marks=pytest.mark.interpreter),
]
if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    _FORMS.append(pytest.param(("triton", "cuda"), id="triton-cuda"))


@pytest.fixture(params=_FORMS)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each form in turn is forced for the whole test; the value is the device that its tensors must be on."""
    form, device = request.param
    with use(form):
        yield device


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New memory is full of NaN (the largest value for integers), so that reading it before writing shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def guarded() -> Callable[[torch.Tensor], torch.Tensor]:
    """Copies a contiguous tensor into the middle of a larger piece of memory that is otherwise NaN."""

    def guard(values: torch.Tensor, margin: int = 4096) -> torch.Tensor:
        memory = values.new_full((values.numel() + 2 * margin,), float("nan"))
        inner = memory[margin : margin + values.numel()].view(values.shape)
        return inner.copy_(values)

    return guard
