"""What it costs to be watched: the built-in model with Accel's clock and recorder on, against without.

python -m bench.recorder [--pairs 60] [--size quick] [--steps 12] [--write]

Three rows: the plain pipeline; enabled without a method, so that every call is timed and counted; and the delta cache
at interval 1, which computes everything and records every block call. All give the same bits, which is checked.

What a row takes more is the median of the ratios of its pairs, with the interval in which that of all such pairs lies
with 95 % confidence: single rounds differ by more than the recorder costs, so that their spread says little of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

import accel
from accel.config import AccelConfig
from accel.measure.confidence import LEAST_BY_SIGNS, interval
from accel.measure.timing import interleaved, machine
from accel.pipelines.demo import WEIGHTS
from accel.pipelines.loading import weights_hash

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a red circle moving left on a black background"
SETTINGS: dict[str, AccelConfig | None] = {
    "plain": None,
    "enabled, no method": AccelConfig(),
    "every block call recorded": AccelConfig.from_dict({"cache": {"method": "delta", "interval": 1}}),
}


def main() -> None:
    """Reads the command line, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--size", default="quick")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--write", action="store_true", help="write the table to bench/results")
    options = parser.parse_args()
    if options.pairs < LEAST_BY_SIGNS:
        parser.error(f"--pairs {options.pairs} is too few for an interval; the nearest that works is {LEAST_BY_SIGNS}")
    torch.set_num_threads(1)
    pipe: Any = accel.load_pipeline("demo", size=options.size)
    pipe.set_progress_bar_config(disable=True)
    results: dict[str, torch.Tensor] = {}

    def run(name: str) -> None:
        generator = torch.Generator().manual_seed(0)
        results[name] = pipe(
            PROMPT, num_inference_steps=options.steps, generator=generator, output_type="latent"
        ).frames

    def case(name: str, config: AccelConfig | None) -> Any:
        def timed() -> None:
            if config is None:
                run(name)
                return
            with accel.enable(pipe, config):
                run(name)

        return timed

    timings = interleaved({name: case(name, config) for name, config in SETTINGS.items()}, repeats=options.pairs)
    plain = timings["plain"]
    if not all(torch.equal(one, results["plain"]) for one in results.values()):
        sys.exit("the rows gave different bits")
    rows = []
    for name, timing in timings.items():
        ratios = [own / base for own, base in zip(timing.seconds, plain.seconds, strict=True)]
        low, high = interval(ratios)
        row = {"setting": name, "seconds": timing.median, "share": statistics.median(ratios) - 1}
        rows.append({**row, "least": low - 1, "most": high - 1})
    settings = {
        "command": f"python -m bench.recorder --pairs {options.pairs} --size {options.size} --steps {options.steps}",
        "weights": weights_hash(WEIGHTS),
        "machine": machine(),
    }
    text = _markdown(rows, settings)
    print(text)
    if options.write:
        folder = ROOT / "bench" / "results" / "cpu"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recorder.md").write_text(text)
        (folder / "recorder.json").write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")


def _markdown(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    lines = [
        "# What the recorder costs",
        "",
        f"Printed by `{settings['command']}`: one warm-up round, then rounds in which the rows take turns.",
        "Enabling and disabling lie within the time. The share is the median of the ratios of pairs; in brackets",
        "stands where that median lies with 95 % confidence, by the sign test.",
        "",
        f"weights: {settings['weights']}, "
        + ", ".join(f"{key}: {value}" for key, value in settings["machine"].items() if value is not None),
        "",
        "| setting | seconds (median) | more than plain |",
        "|---|---|---|",
    ]
    for row in rows:
        more = "–" if row["setting"] == "plain" else f"{row['share']:+.1%} ({row['least']:+.1%} to {row['most']:+.1%})"
        lines.append(f"| {row['setting']} | {row['seconds']:.2f} | {more} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
