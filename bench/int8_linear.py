"""Times an INT8 linear, quantization of its input included, against torch's own, in turn on the same tensors.

python bench/int8_linear.py [--device cuda] [--dtype bfloat16] [--threads 1] [--repeats 10]
"""

import argparse
import json

import torch
from torch import Tensor

from accel.kernels.int8 import int8_linear, quantize_int8
from accel.measure.timing import interleaved, machine, ratio

# Tokens, channels and outputs: 1536 channels, and the built-in model's attention and feed-forward.
SIZES = [(4096, 1536, 1536), (2112, 192, 192), (2112, 192, 768), (2112, 768, 192)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    told = {"dtype": options.dtype, "threads": options.threads, "warmup": options.warmup, "repeats": options.repeats}
    print(json.dumps(machine(options.device) | told))
    print("ms: median (20th to 80th percentile); ratio of medians linear / int8; relative error of int8")
    for tokens, channels, outputs in SIZES:
        x, weight = (torch.randn(rows, channels, device=options.device).to(dtype) for rows in (tokens, outputs))
        bias = torch.randn(outputs, device=options.device).to(dtype)
        stored = quantize_int8(weight)

        def linear(x: Tensor = x, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
            return torch.nn.functional.linear(x, weight, bias)

        def int8(x: Tensor = x, stored: tuple[Tensor, Tensor] = stored, bias: Tensor = bias) -> Tensor:
            return int8_linear(*quantize_int8(x), *stored, bias, x.dtype)

        def int8_rotated(x: Tensor = x, stored: tuple[Tensor, Tensor] = stored, bias: Tensor = bias) -> Tensor:
            return int8_linear(*quantize_int8(x, rotate=True), *stored, bias, x.dtype)

        calls = {"linear": linear, "int8": int8}
        if channels % 128 == 0:
            # Timed alone: its weight is not rotated, so its result is no product of these two.
            calls["int8, rotated"] = int8_rotated
        times = interleaved(calls, warmup=options.warmup, repeats=options.repeats, device=options.device)
        error = ((int8().double() - linear().double()).norm() / linear().double().norm()).item()
        shown = "  ".join(
            f"{name} {1e3 * time.median:.2f} ({1e3 * time.p20:.2f} to {1e3 * time.p80:.2f})"
            + (f" x{ratio(times['linear'], time):.2f}" if name != "linear" else "")
            for name, time in times.items()
        )
        print(f"{tokens}x{channels}x{outputs}: {shown}  error {error:.4f}")


if __name__ == "__main__":
    main()
