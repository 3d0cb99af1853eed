"""What `bench.block_attention` says of speed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from accel.measure.timing import Timing
from bench import block_attention


def test_block_attention_tells_no_speed_up_inside_the_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    def interleaved(cases: dict[str, Any], **options: Any) -> dict[str, Timing]:
        near = {name: Timing((1.0, 1.1, 0.9)) for name in cases}
        return {**near, "dense": Timing((1.0, 1.0, 1.0)), "0.5, none": Timing((0.5, 0.5, 0.5))}

    monkeypatch.setattr(block_attention, "interleaved", interleaved)
    monkeypatch.setattr(block_attention, "DENSITIES", (0.5, 0.25))
    given = tuple(torch.randn(1, 128, 2, 64, generator=torch.Generator().manual_seed(1)) for _ in range(3))
    lines = block_attention.measure(given, SimpleNamespace(repeats=3, device="cpu"), torch.get_num_threads())  # type: ignore[arg-type]
    told = {line["case"]: line["said"] for line in lines}
    assert told.pop("dense") == "the baseline" and told.pop("0.5, none") == "2.00× ± 0.01"
    assert len(told) == 5 and all(text.startswith("no measurable difference") for text in told.values())
    assert told["0.25, none"] in block_attention.markdown({"command": "", "machine": {}}, lines)
