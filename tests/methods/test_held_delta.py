"""Changes as they are held between steps."""

from __future__ import annotations

import pytest
import torch

from accel.methods.held_delta import FLOAT8, HeldDelta


def test_a_token_without_a_change_has_none_where_the_smallest_numbers_are_flushed_to_zero() -> None:
    hidden = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    output = hidden + torch.tensor([1.0, 0.0, 2.0])[:, None]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor flushes none")
    try:
        held, _ = HeldDelta.make(output, hidden, None, 0, sloped=False, dtype=FLOAT8)
        delta, _ = held.read(torch.float32)
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(delta, output - hidden, rtol=0.07, atol=0.0)
