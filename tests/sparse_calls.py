"""One sparse attention call of random tokens, without a pipeline, and the report of a session's last run."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from accel.methods.sparse_call import Blocks, SparseCall, highest_blocks, put_into_blocks
from accel.pipelines.attention import AttentionCall
from accel.runtime.clock import Moment

BLOCK = 32
GRID = (1, 11, 12)  # 132 tokens: four blocks and a short one


def last(session: Any) -> dict[str, Any]:
    return session.summary().to_dict()["runs"][-1]


def moment(step: int = 0, branch: str = "cond", **changes: Any) -> Moment:
    return Moment(
        **{"run": 0, "chunk": 0, "step": step, "num_steps": 8, "denoiser": "transformer", **changes},
        branch=branch,
        grid=GRID,
    )


def tensors(seed: int, *, words: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 1, math.prod(GRID) + words, 2, 16, generator=generator).to(dtype)
    return query, key, value


def in_blocks(now: Moment, parts: tuple[Tensor, Tensor, Tensor], words: int = 0) -> SparseCall:
    call = AttentionCall("suffix" if words else "none", words, None, dispatched=True)
    return put_into_blocks(now, 0, parts, call, None, BLOCK, True)[1]


def some_blocks(call: SparseCall, density: float) -> Blocks:
    rows, blocks = call.image.stop - call.image.start, call.sizes.shape[1]
    scores = torch.randn(1, 2, rows, blocks, generator=torch.Generator().manual_seed(5))
    return highest_blocks(call, scores, density)
