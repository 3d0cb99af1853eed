"""Times block attention against torch's dense attention, statistics and selection included.

python -m bench.block_attention [--device cuda] [--dtype bfloat16] [--threads 1 2] [--repeats 7] [--write]

Queries and keys follow smooth waves along the sequence, as neighbouring tokens of a picture do; the error beside each
time is that of the output against dense attention on the same tensors. A speed-up stands with its spread, half the
distance from the 20th to the 80th percentile of the ratios of single rounds, and is none where it lies within that.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel.kernels.block_attention import block_attention
from accel.kernels.block_statistics import block_means, block_statistics
from accel.kernels.selection import kept_number, top_blocks
from accel.measure.timing import interleaved, machine
from accel.measure.verdict import speed_up

TOKENS, HEADS, HEAD_SIZE, BLOCK = 8192, 4, 64, 64
DENSITIES = (0.5, 0.25, 0.125, 0.1, 0.06)
TAILS = ("none", "zeroth", "hybrid")


def sequences(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of shape (1, TOKENS, HEADS, HEAD_SIZE)."""
    generator = torch.Generator().manual_seed(5)
    waves = 64
    phases = 2 * math.pi * torch.rand(waves, generator=generator)
    frequencies = 2 * math.pi * torch.arange(1, waves + 1) * 2
    field = torch.sin(torch.arange(TOKENS)[:, None] / TOKENS * frequencies + phases)
    mixed = []
    for _ in range(3):
        mixing = torch.randn(waves, HEADS * HEAD_SIZE, generator=generator) / math.sqrt(waves / 4)
        noise = 0.3 * torch.randn(TOKENS, HEADS * HEAD_SIZE, generator=generator)
        mixed.append((field @ mixing + noise).view(1, TOKENS, HEADS, HEAD_SIZE).to(device, dtype))
    query, key, value = mixed
    # Queries resemble the keys of their own place.
    return (query + key) / math.sqrt(2), key, value


def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def sparse(query: Tensor, key: Tensor, value: Tensor, density: float, tail: str) -> Tensor:
    """One call as a method makes it: means, scores, the best blocks of each row, attention."""
    beside: dict[str, Tensor | None] = {}
    if tail == "none":
        mean_key = block_means(key, BLOCK)
    else:
        mean_key, mean_value, matrix, _ = block_statistics(key, value, BLOCK, first_order=tail == "hybrid")
        beside = {"mean_key": mean_key, "mean_value": mean_value, "first_order": matrix}
    scores = torch.einsum("bihd,bjhd->bhij", block_means(query, BLOCK), mean_key)
    blocks, counts = top_blocks(scores, kept_number(density, mean_key.shape[1]))
    return block_attention(query, key, value, blocks, counts, block_size=BLOCK, **beside)[0]


def measure(given: tuple[Tensor, Tensor, Tensor], options: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)

    def call(density: float, tail: str) -> Callable[[], Tensor]:
        return lambda: sparse(*given, density, tail)

    cases: dict[str, Callable[[], Tensor]] = {"dense": lambda: dense(*given)}
    cases |= {f"{density:g}, {tail}": call(density, tail) for density in DENSITIES for tail in TAILS}
    times = interleaved(cases, warmup=1, repeats=options.repeats, device=options.device)
    wanted = dense(*(x.float() for x in given))
    lines = []
    for name, time in times.items():
        difference = cases[name]().float() - wanted
        against = speed_up(times["dense"].seconds, time.seconds)
        lines.append(
            {
                "case": name,
                "threads": threads,
                "ms": round(1e3 * time.median, 2),
                "ms_p20": round(1e3 * time.p20, 2),
                "ms_p80": round(1e3 * time.p80, 2),
                "speed_up": round(against.ratio, 2),
                "said": "the baseline" if name == "dense" else str(against),
                "error": round(float(difference.square().mean().sqrt() / wanted.square().mean().sqrt()), 4),
            }
        )
    return lines


def markdown(settings: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    head = [
        "# Block attention against dense attention",
        "",
        f"Printed by `{settings['command']}`.",
        "",
        ", ".join(f"{key}: {value}" for key, value in settings.items() if key not in ("command", "machine")),
        "",
        ", ".join(f"{key}: {value}" for key, value in settings["machine"].items() if value is not None),
        "",
        "| density, tail | threads | ms: median (20th to 80th percentile) | speed-up | relative error |",
        "|---|---|---|---|---|",
    ]
    rows = [
        f"| {line['case']} | {line['threads']} | {line['ms']:.1f} ({line['ms_p20']:.1f} to {line['ms_p80']:.1f}) | "
        f"{line['said']} | {line['error']:.4f} |"
        for line in lines
    ]
    return "\n".join(head + rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write the table to bench/results")
    options = parser.parse_args()

    given = sequences(getattr(torch, options.dtype), options.device)
    settings = {
        "command": (
            f"python -m bench.block_attention --dtype {options.dtype} "
            f"--threads {' '.join(map(str, options.threads))} --repeats {options.repeats}"
        ),
        "size": f"{TOKENS} tokens, {HEADS} heads of {HEAD_SIZE}, blocks of {BLOCK}",
        "dtype": options.dtype,
        "baseline": "scaled_dot_product_attention",
        "included": "means, first-order matrix, scores, top-k",
        "repeats": f"{options.repeats}, interleaved, after 1 of warm-up",
        "machine": machine(options.device),
    }
    lines = [line for threads in options.threads for line in measure(given, options, threads)]
    text = markdown(settings, lines)
    print(text)
    if options.write:
        folder = Path(__file__).parent / "results" / torch.device(options.device).type
        folder.mkdir(parents=True, exist_ok=True)
        stem = "block_attention" if options.dtype == "float32" else f"block_attention_{options.dtype}"
        (folder / f"{stem}.md").write_text(text)
        (folder / f"{stem}.json").write_text(json.dumps({**settings, "rows": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
