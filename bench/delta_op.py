"""Times the delta operations: the form made for the device against the reference, in turn on the same tensors.

python bench/delta_op.py [--device cuda] [--repeats 30]
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch

from accel.kernels.delta import apply_delta, compute_delta, update_delta
from accel.kernels.forms import Form, select, use
from accel.measure.timing import interleaved, machine, ratio

# Hidden states of the built-in model, and of a model with 1536 channels for both guidance branches.
SHAPES = [(1, 2112, 192), (2, 4096, 1536)]


def in_form(form: Form, operation: Callable[..., object], *arguments: Any) -> Callable[[], object]:
    def call() -> object:
        with use(form):
            return operation(*arguments)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    options = parser.parse_args()

    print(json.dumps(machine(options.device) | {"warmup": options.warmup, "repeats": options.repeats}))
    fast = select(torch.empty(0, device=options.device))
    print(f"ms: median (20th to 80th percentile); ratio of medians reference / {fast}")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            output, input, previous = torch.randn(3, *shape, device=options.device).to(dtype)
            calls = {
                "compute_delta": (compute_delta, output, input),
                "compute_delta, previous": (compute_delta, output, input, previous),
                "update_delta, slope": (update_delta, output, input, previous, input, 2),
                "apply_delta": (apply_delta, input, output),
                "apply_delta, slope": (apply_delta, input, output, previous, 2),
            }
            for name, call in calls.items():
                forms: tuple[Form, ...] = (fast, "reference")
                times = interleaved(
                    {form: in_form(form, *call) for form in forms},
                    warmup=options.warmup,
                    repeats=options.repeats,
                    device=options.device,
                )
                shown = "  ".join(
                    f"{form} {1e3 * time.median:.3f} ({1e3 * time.p20:.3f} to {1e3 * time.p80:.3f})"
                    for form, time in times.items()
                )
                faster = ratio(times["reference"], times[fast])
                print(f"{str(dtype).removeprefix('torch.')} {shape} {name}: {shown}  x{faster:.2f}")


if __name__ == "__main__":
    main()
