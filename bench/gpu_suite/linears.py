"""Linears in INT8, NVFP4 and mixed precision at the sizes of Wan 14B, all included, against 16 bits and torch's."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from accel.kernels.int8 import int8_linear, quantize_int8
from accel.kernels.nvfp4 import dequantize_nvfp4, nvfp4_to_int8, quantize_nvfp4
from accel.kernels.nvfp4_linear import nvfp4_linear, nvfp4_weight_linear
from accel.kernels.quantized_linear import ACTIVATIONS, SEEN, quantized_linear
from accel.kernels.rotation import BLOCK, rotate
from accel.measure.timing import Case, take_turns
from bench.gpu_suite.cells import Cells
from bench.gpu_suite.figures import answering, figures, require_within, said
from bench.gpu_suite.problems import random, relative
from bench.kernels.sizes import SIZES

SHAPES = [
    (SIZES[name].tokens, *linear)
    for name in ("wan-14b-480p", "wan-14b-720p")
    for linear in SIZES[name].linears.values()
]
TINY = [(300, 256, 384)]
# The largest error of a product against the linear, on random numbers: about 1% with 8 bits, 9% with 4 bits, 13 to 18%
# with 4 bits on both sides. What is far above is a mistake and no rounding.
_OF_INT8, _OF_NVFP4 = 0.03, 0.28
# The tensor scale that mixed precision gives rotated activations where nothing was calibrated.
_ROTATED_SCALE = 4.0
# Rows whose error is looked at: in float64 all of them would not fit beside the rest.
_SHOWN = 4096


def run(cells: Cells, device: str, tiny: bool) -> None:
    """A cell for each number of tokens and each linear."""
    for tokens, channels, outputs in TINY if tiny else SHAPES:
        cells.run(f"{tokens}/{channels}x{outputs}", partial(_one, tokens, channels, outputs, device))


def _one(tokens: int, channels: int, outputs: int, device: str) -> dict[str, Any]:
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    x = random(device, dtype, tokens, channels, seed=1)
    weight = random(device, dtype, outputs, channels, seed=2)
    bias = random(device, dtype, outputs, seed=3)
    stored, kept, ready = quantize_int8(weight), quantize_nvfp4(weight, by_error=True), quantize_int8(x)
    scale = torch.tensor(2.0**-7, device=device)
    turned, wide = quantize_nvfp4(rotate(weight, 1 / BLOCK), by_error=True), torch.tensor(_ROTATED_SCALE, device=device)
    ran = torch.zeros(len(ACTIVATIONS), dtype=torch.int64)
    seen = torch.zeros(len(SEEN), device=device)

    def mixed(activation: int) -> Case:
        route = torch.tensor([activation, 0, -1])
        return lambda: quantized_linear(x, turned, bias, wide, True, route, ran, seen)

    def from_nvfp4() -> Tensor:
        return int8_linear(*quantize_int8(x), *nvfp4_to_int8(*kept), bias, dtype)

    def of_torch() -> Tensor:
        integers, row_scale = quantize_int8(x)
        sums = torch._int_mm(integers, stored[0].T)
        return (sums.float() * row_scale[:, None] * stored[1] + bias.float()).to(dtype)

    products: dict[str, Case] = {
        "int8, all": lambda: int8_linear(*quantize_int8(x), *stored, bias, dtype),
        "int8, weight from nvfp4": from_nvfp4,
        "nvfp4 weight, 16 bits": lambda: nvfp4_weight_linear(x, *kept, bias),
        "nvfp4 weight, decoded before": lambda: linear(x, dequantize_nvfp4(*kept, dtype), bias),
        "nvfp4, all": lambda: nvfp4_linear(*quantize_nvfp4(x, scale), *kept, bias, dtype),
        # As mixed precision calls it, rotated: one operation that reads the activations' format when it runs.
        **{f"mixed, {name} activations": mixed(place) for place, name in enumerate(ACTIVATIONS)},
    }
    pieces: dict[str, Case] = {
        "int8, kernel": lambda: int8_linear(*ready, *stored, bias, dtype),
        "quantize_int8": lambda: quantize_int8(x),
        "quantize_int8, rotated": lambda: quantize_int8(x, rotate=True),
        "quantize_nvfp4, rotated": lambda: quantize_nvfp4(x, scale, rotate=True),
        "nvfp4_to_int8": lambda: nvfp4_to_int8(*kept),
    }
    rivals, refused = answering({"torch._int_mm, unfused": lambda: of_torch})
    cases: dict[str, Case] = {"linear": lambda: linear(x, weight, bias), **rivals, **products, **pieces}
    wanted = linear(x, weight, bias)[:_SHOWN]
    errors = {name: relative(case()[:_SHOWN], wanted) for name, case in {**rivals, **products}.items()}  # type: ignore[index]
    in_int8 = ("torch._int_mm, unfused", "int8, all")
    require_within(errors, {name: _OF_INT8 if name in in_int8 else _OF_NVFP4 for name in errors})
    times = take_turns(cases, device)
    operations = 2 * tokens * channels * outputs
    rows: dict[str, dict[str, Any]] = {}
    for name, time in times.items():
        rows[name] = figures(time)
        if name in errors or name in ("linear", "int8, kernel"):
            rows[name]["tops"] = round(operations / time.median / 1e12, 1)
        if name in errors or name == "int8, kernel":
            rows[name]["speed_up"] = said(times["linear"], time)
        if name in errors:
            rows[name]["error"] = round(errors[name], 5)
    share = times["nvfp4_to_int8"].median / times["int8, kernel"].median
    return {"rows": rows, "conversion_share": round(share, 4), "refused": refused}
