"""Number formats on the built-in model: errors of products, what foretells them, and clips of every format.

python -m bench.quantization [--prompts 8] [--size standard] [--steps 24] [--rows mixed] [--write]

First plain runs in which every product is computed in every format beside it: errors by layer and step, how well what
mixed precision knows foretells them, and which criterion chooses best. Then clips: each format alone and beside TDC and
PISA, and mixed precision's weights with INT8 nowhere, everywhere, at random, by the paper's rule, and where it gains
most. NVFP4 activations are emulated on a CPU, so that their seconds say nothing of a device that has them.
"""

from __future__ import annotations

import statistics
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

from accel.errors import AccelWarning
from accel.measure.trial import Preparation, Setting
from accel.methods.mixed import MixedPrecision
from accel.session import Session
from bench.comparison import Benchmark, nearest, setting, tabulate
from bench.precision_choices import BEST, LINE, SEEDS, RandomRule, RuleMaker, TableRule, criteria, random_name
from bench.precision_study import BITS, Study, markdown, share_of
from bench.tables import Figure, Row
from bench.tdc import PISA, PISA_THRESHOLDS, THRESHOLDS

# On a device that has them nothing is emulated; elsewhere both formats are to be seen.
_MIXED = {"method": "mixed", "emulate": True}
FORMATS: dict[str, dict[str, Any]] = {
    "int8": {"method": "int8"},
    "nvfp4 (emulated)": {"method": "nvfp4"},
    **{f"mixed, {bits} bits": {**_MIXED, "target_bits": float(bits)} for bits in BITS},
}

# The mean bits, mixed precision's own, at which clips are also made with other choices of as many layers and steps. By
# the errors of products these are compared at every average, and with every criterion there is.
COMPARED = 6


def settings(study: Study) -> list[Setting]:
    """The plain pipeline, the formats, alone and in company, and what mixed precision lies between."""
    steps = study.steps
    tdc = {"method": "tdc", "threshold": nearest(THRESHOLDS, steps)[1]}
    company: dict[str, dict[str, Any]] = {
        "": {},
        " + tdc": {"cache": tdc},
        " + pisa": {"attention": PISA},
    }
    found = [setting("float32", steps)]
    for beside, methods in company.items():
        if methods:
            found.append(setting(f"float32{beside}", steps, methods))
        for name, quantize in FORMATS.items():
            found.append(setting(f"{name}{beside}", steps, {**methods, "quantize": quantize}))
    both = {"cache": {"method": "tdc", "threshold": nearest(PISA_THRESHOLDS, steps)[0]}, "attention": PISA}
    found += [
        setting("float32 + tdc + pisa", steps, both),
        setting("mixed, 6 bits + tdc + pisa", steps, {**both, "quantize": _MIXED}),
        _by("W4A4 of mixed", "no INT8", 4, partial(RandomRule, 0.0), steps),
        _by("W4A8 of mixed", "INT8 everywhere", 8, partial(RandomRule, 1.0), steps),
    ]
    rules = criteria(share_of(COMPARED), steps, study.calibration)
    compared = {random_name(seed): rules[random_name(seed)] for seed in SEEDS}
    # The paper's own rule; what is called mixed is Accel's without a calibration.
    compared[LINE] = rules[LINE]
    compared[f"{BEST} of products, known from these {len(study.found)} runs"] = partial(
        TableRule, study.best_table(COMPARED)
    )
    return found + [
        _by(f"mixed, {COMPARED} bits by {name}", name, COMPARED, rule, steps) for name, rule in compared.items()
    ]


def _by(name: str, criterion: str, bits: int, rule: RuleMaker, steps: int) -> Setting:
    plain = setting(name, steps, {"quantize": {**_MIXED, "target_bits": float(bits)}})
    return replace(plain, prepared=Preparation(f"chosen by {criterion}", partial(_decide_by, rule)))


def _decide_by(rule: RuleMaker, session: Session) -> None:
    (method,) = (method for method in session.methods if isinstance(method, MixedPrecision))
    method.decide_by(rule)


def verdict(rows: list[Row]) -> list[str]:
    """Whether mixed precision's clips are nearer to the plain ones than those of random choices."""
    decibels = {row["setting"]: statistics.mean(row["psnr_db"]) for row in rows[1:] if row["psnr_db"]}
    ours = decibels.get(f"mixed, {COMPARED} bits")
    names = [f"mixed, {COMPARED} bits by {random_name(seed)}" for seed in SEEDS]
    if ours is None or any(name not in decibels for name in names):
        return []
    random = [decibels[name] for name in names]
    word = "nearer than" if ours > max(random) else "not nearer than"
    listed = ", ".join(f"{one:.2f}" for one in random)
    ends = [f"{name} {decibels[name]:.2f} dB" for name in ("W4A4 of mixed", "W4A8 of mixed") if name in decibels]
    return [
        "",
        f"Mean PSNR of clips at {COMPARED} bits: mixed precision {ours:.2f} dB, {word} all random choices of as many "
        f"pairs ({listed} dB); {', '.join(ends)}.",
    ]


def main() -> None:
    bench = Benchmark.open("quantization", __doc__, prompts=8)
    warnings.simplefilter("ignore", AccelWarning)  # that NVFP4 is emulated stands in the table
    studies = {steps: Study.of(bench, steps) for steps in bench.steps}

    def more(rows: dict[int, list[Row]]) -> tuple[list[str], dict[str, Any]]:
        figures = [study.to_dict() for study in studies.values()]
        text = [line for each in rows.values() for line in verdict(each)]
        for one in figures:
            text += ["", *markdown(one)]
        return text, {"products": figures}

    told = (
        "NVFP4 activations are emulated here: rounded, decoded and multiplied in float32, so that seconds of the rows "
        "with them say nothing of a GPU that has them. Bits are the mean of the activations in computed calls. "
        "`nvfp4` is not rotated, `mixed` is: the rows W4A4 and W4A8 are those of mixed precision's own weights."
    )
    tabulate(
        bench,
        "Number formats on the built-in model",
        {steps: settings(study) for steps, study in studies.items()},
        Figure("average_bits", "average_bits", "bits", "{:.2f}"),
        ["", told],
        more,
    )


if __name__ == "__main__":
    main()
