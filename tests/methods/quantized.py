"""Linears and tiny pipelines for the tests of the quantizations."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

import accel
from accel.errors import AccelWarning
from accel.methods.converted_linear import ConvertedLinear, convert
from accel.methods.quantized_linear import store
from accel.methods.weight_bytes import WeightFormat
from tests.tiny_pipelines import TINY

CASE = TINY["wan"]
STEPS = 3


def linear(
    outputs: int = 128, channels: int = 256, *, bias: bool = True, dtype: torch.dtype = torch.float32
) -> nn.Linear:
    made = nn.Linear(channels, outputs, bias=bias)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return made.to(dtype).requires_grad_(False)


def quantized(layer: nn.Linear, weight_format: WeightFormat, *, rotated: bool = False) -> ConvertedLinear:
    return convert(layer, weight_format, store(layer.weight.detach(), weight_format, rotated), rotated=rotated)


def enable(pipe: Any, *args: Any, **kwargs: Any) -> accel.session.Session:
    """`accel.enable` without what it foretells of a CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccelWarning)
        return accel.enable(pipe, *args, **kwargs)


def run(pipe: Any, **overrides: Any) -> torch.Tensor:
    return CASE.run(pipe, **{"num_inference_steps": STEPS, **overrides})


def last(session: Any) -> dict[str, Any]:
    """The report of the quantization in the last run."""
    record = session.summary().to_dict()["runs"][-1]
    return next(report for report in record["methods"].values() if "average_bits" in report)
