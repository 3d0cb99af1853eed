"""The operations beside attention and linears, most of which move memory: the table of `bench.kernels` at one size."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from accel.measure.timing import take_turns
from bench.gpu_suite.cells import Cells
from bench.gpu_suite.figures import figures
from bench.kernels.cases import Place
from bench.kernels.measuring import measured
from bench.kernels.sizes import SIZES, Size
from bench.kernels.table import OPERATIONS

SIZE = "wan-14b-480p"
TINY = Size((4, 8, 8), 2, 64, 256, "made up")
# What the parts `attention` and `linears` measure at more sizes, each by its own name.
_ELSEWHERE = (
    "block_attention.block_attention",
    "int8.int8_linear",
    "nvfp4_linear.nvfp4_linear",
    "nvfp4_linear.nvfp4_weight_linear",
    "quantized_linear.quantized_linear",
)


def run(cells: Cells, device: str, tiny: bool) -> None:
    """A cell for each operation, after one for a plain copy, which says what a device can move."""
    name, size = ("tiny", TINY) if tiny else (SIZE, SIZES[SIZE])
    place = Place(device, torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16, 0.125)
    cells.run("copy", partial(_copy, device))
    for operation in OPERATIONS:
        if operation not in _ELSEWHERE and OPERATIONS[operation](size, place):
            cells.run(operation, partial(_one, operation, size, place, 0.1 if tiny else 2.0), size=name)


def _copy(device: str) -> dict[str, Any]:
    size = (1 << 24) if torch.device(device).type == "cpu" else (1 << 30)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    time = take_turns({"copy": lambda: target.copy_(source)}, device)["copy"]
    return {"rows": {"copy": {**figures(time), "gb_per_s": round(2 * source.nbytes / time.median / 1e9, 1)}}}


def _one(operation: str, size: Size, place: Place, seconds: float) -> dict[str, Any]:
    """Each way to call an operation, checked, and what stands beside it."""
    rows: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for variant in OPERATIONS[operation](size, place):
        found = measured(variant.make(), variant.work, place.device, seconds=seconds)
        if not found["correct"]:
            raise ValueError(f"{variant.name} is wrong: error {found['error']}, bound {found['bound']:g}")
        row = {key: found[key] for key in ("ms", "ms_p20", "ms_p80", "rounds", "error", "bound")}
        row["gb_per_s"] = round(found["bytes_per_s"] / 1e9, 1)
        if found["flop_per_s"] is not None:
            row["tflops"] = round(found["flop_per_s"] / 1e12, 2)
        for rival, beside in found["rivals"].items():
            row |= {f"{rival}: ms": beside["ms"], f"{rival}: speed-up": beside["speed_up"]["text"]}
        rows[variant.name] = row
        refused |= found["refused"]
    return {"rows": rows, "refused": refused}
