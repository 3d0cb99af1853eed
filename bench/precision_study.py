"""What is learnt from the errors of products: their size, how well they are foretold, and which criterion is best."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel.measure.calibration import calibrate_mixed
from accel.methods.layer_choice import Layer
from accel.methods.precision_calibration import Calibration
from accel.pipelines.demo.scenes import Scene
from accel.pipelines.sites import inspect_pipeline
from bench import gemm_errors
from bench.comparison import Benchmark
from bench.gemm_errors import ACTIVATIONS, PRODUCTS, Errors
from bench.precision_choices import BEST, OWN, SEEDS, Judged, best, criteria, judge, random_name, replay
from bench.sharing import made_once

BITS = (5, 6, 7)
# Not among the prompts of any table.
_CALIBRATION = (Scene("circle", "yellow", "right", "gray"), Scene("square", "green", "up", "white", "striped"))


def share_of(bits: float) -> float:
    """The share of INT8 activations, the others in NVFP4, whose mean is so many bits."""
    return (bits - 4.0) / 4.0


@dataclass(frozen=True)
class Study:
    """The errors of the prompts' plain runs of one number of steps, and a calibration on other prompts."""

    steps: int
    layers: list[Layer]
    found: list[Errors]
    calibration: Calibration

    @classmethod
    def of(cls, bench: Benchmark, steps: int) -> Study:
        """Measures what is not kept from before; several processes share it."""
        calibration = bench.folder / f"calibration_{steps}.json"
        errors = [bench.folder / f"errors_{steps}_{index}.npz" for index in range(len(bench.prompts))]
        makers = {path: partial(_measure, bench, steps, index, path) for index, path in enumerate(errors)}
        made_once(bench.folder, {calibration: partial(_calibrate, bench, steps, calibration), **makers})
        layers = gemm_errors.layers_of(inspect_pipeline(bench.pipe))
        return cls(steps, layers, [Errors.load(path) for path in errors], Calibration.load(calibration))

    def best_table(self, bits: float) -> Tensor:
        """The best possible choice for the mean errors over the prompts."""
        errors = {name: torch.stack([each.errors[name] for each in self.found]).mean(0) for name in ("W4A4", "W4A8")}
        return best(Errors(errors, self.found[0].changes), share_of(bits))

    def judged(self, bits: float) -> dict[str, Judged]:
        """By criterion, means over the prompts."""
        share = share_of(bits)
        rules = criteria(share, self.steps, self.calibration)
        choices = {name: [replay(rule, self.layers, each) for each in self.found] for name, rule in rules.items()} | {
            BEST: [best(each, share) for each in self.found]
        }
        return {
            name: Judged.mean([judge(c, self.layers, each) for c, each in zip(chosen, self.found, strict=True)])
            for name, chosen in choices.items()
        }

    def errors(self, name: str) -> Tensor:
        """The errors of a product (prompts, steps, layers)."""
        return torch.stack([each.errors[name] for each in self.found])

    def before(self) -> Tensor:
        """The changes of the layers' blocks at the step before each step but the first (prompts, steps - 1, layers)."""
        blocks = [layer.block for layer in self.layers]
        return torch.stack([each.changes[:-1, blocks] for each in self.found])

    def predictors(self) -> dict[str, Tensor]:
        """What foretells the error of 4-bit activations, where a step lies behind (prompts, steps - 1, layers)."""
        changes = self.before()
        lines = torch.tensor([self.calibration.lines[layer.name] for layer in self.layers])
        first = self.errors(ACTIVATIONS)[:, :1].expand_as(changes)
        return {
            "change of the block": changes,
            "calibrated line": changes * lines[:, 0] + lines[:, 1],
            "error at the first step": first,
            "error at the first step x change": first * changes,
        }

    def to_dict(self) -> dict[str, Any]:
        """All figures; errors are means over the prompts, by step a list of the layers. A correlation of what never
        changes is None."""
        actual = self.errors(ACTIVATIONS)[:, 1:]
        within = correlations(self.before(), actual)
        return {
            "steps": self.steps,
            "layers": [layer.path for layer in self.layers],
            "errors": {name: _rounded(self.errors(name).mean(0)) for name in (*PRODUCTS, ACTIVATIONS)},
            "correlation_by_layer": [_finite(each) for each in _rounded(within)],
            "correlation": {
                name: _finite(round(correlation(each, actual), 4)) for name, each in self.predictors().items()
            },
            "criteria": {
                str(bits): {name: {k: round(v, 5) for k, v in asdict(judged).items()} for name, judged in each.items()}
                for bits, each in ((bits, self.judged(bits)) for bits in BITS)
            },
        }


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's, over all entries; NaN where one of them never changes."""
    return correlations(one.reshape(-1, 1), other.reshape(-1, 1)).item()


def correlations(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's for each entry of the last dimension, over all others."""
    a, b = (each.double().flatten(0, -2) for each in (one, other))
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()


def markdown(figures: dict[str, Any]) -> list[str]:
    """The figures of `Study.to_dict` for people."""
    names = figures["layers"]
    kinds = list(dict.fromkeys(_kind(name) for name in names))
    errors = {name: torch.tensor(each) for name, each in figures["errors"].items()}
    text = [
        f"## Errors of products, {figures['steps']} steps",
        "",
        "Mean |y' - y| / |y| over prompts, steps and layers of a kind, and in brackets the least and the largest mean",
        "of a layer. Inputs are those of the plain run; A4 is what 4-bit activations alone do, W4A4 against W4A16.",
        "",
        *_table(["layers", *errors]),
    ]
    for kind in [*kinds, "all"]:
        places = [i for i, name in enumerate(names) if kind in ("all", _kind(name))]
        cells = [kind]
        for each in errors.values():
            means = each[:, places].mean(0)
            cells.append(f"{means.mean():.4f} ({means.min():.4f} to {means.max():.4f})")
        text.append(f"| {' | '.join(cells)} |")
    a4 = errors[ACTIVATIONS]
    text += [
        "",
        f"A4 moves by {a4.std(0).mean():.4f} from step to step (standard deviation, mean over layers) and by "
        f"{a4.mean(0).std():.4f} from layer to layer.",
        "",
        f"## What foretells them, {figures['steps']} steps",
        "",
        "Correlation with A4 over prompts, steps but the first, and layers; the calibration is on two other prompts.",
        "",
        *_table(["predictor", "correlation"]),
        *(f"| {name} | {_number(each)} |" for name, each in figures["correlation"].items()),
        "",
    ]
    within = torch.tensor([each for each in figures["correlation_by_layer"] if each is not None])
    if len(within):
        text.append(
            f"Within a layer, the change of its block has a correlation of {within.mean():.2f} in the mean, "
            f"{within.min():.2f} to {within.max():.2f}, with A4; it is above 0.5 in {int((within > 0.5).sum())} of "
            f"{len(names)} layers."
        )
    return text + _criteria(figures)


def _criteria(figures: dict[str, Any]) -> list[str]:
    text = [
        "",
        f"## Criteria by the errors of products, {figures['steps']} steps",
        "",
        "Mean error of all products where the criterion says which are W4A8, the others being W4A4; in brackets how",
        "far that lies on the way from W4A4 (0 %) to W4A8 (100 %), and the same with each error weighted by the change",
        "of its block; in square brackets the bits where they are not those of the column. Every rule but the random",
        "ones has INT8 in the first step, where it knows nothing.",
        "",
        *_table(["criterion", *(f"{bits} bits" for bits in figures["criteria"])]),
    ]
    for name in next(iter(figures["criteria"].values())):
        cells = [name]
        for bits, each in figures["criteria"].items():
            one = each[name]
            cell = f"{one['error']:.5f} ({one['place']:.1%}, {one['weighted_place']:.1%})"
            cells.append(cell if abs(one["bits"] - float(bits)) < 0.05 else f"{cell} [{one['bits']:.2f}]")
        text.append(f"| {' | '.join(cells)} |")
    text.append("")
    for bits, each in figures["criteria"].items():
        ours, random = each[OWN]["error"], [each[random_name(seed)]["error"] for seed in SEEDS]
        word = "below" if ours < min(random) else "not below"
        text.append(f"- {bits} bits: mixed precision's own criterion is {word} all random choices of as many pairs")
    return text


def _table(headings: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]


def _kind(name: str) -> str:
    return name.split(".", 2)[-1]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _finite(value: float) -> float | None:
    # JSON has no NaN.
    return value if math.isfinite(value) else None


def _rounded(values: Tensor) -> Any:
    return torch.round(values.double(), decimals=5).tolist()


def _run(bench: Benchmark, steps: int, index: int, prompt: str | None = None) -> None:
    bench.pipe(
        **bench.call,
        prompt=prompt or bench.prompts[index],
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(index),
        output_type="latent",
    )


def _measure(bench: Benchmark, steps: int, index: int, path: Path) -> None:
    gemm_errors.measure(bench.pipe, steps, partial(_run, bench, steps, index)).save(path)
    print(f"{steps} steps, prompt {index}: errors of all products measured", file=sys.stderr)


def _calibrate(bench: Benchmark, steps: int, path: Path) -> None:
    runs = [partial(_run, bench, steps, 1000 + place, scene.caption()) for place, scene in enumerate(_CALIBRATION)]
    part = path.with_suffix(".part")
    calibrate_mixed(bench.pipe, runs).save(part)
    part.rename(path)
