"""Sparse attention on the built-in model: densities and forms, against the plain pipeline.

python -m bench.sparse_attention [--prompts 4] [--size standard] [--threads 1] [--write]

All forms are dense for the same first quarter of the steps and in no layer, so that they differ in the attention
alone; density counts the exact key blocks of a sparse call, and the last column but one all calls.
"""

from __future__ import annotations

from typing import Any

from accel.measure.trial import Setting
from bench.comparison import main, setting
from bench.tables import Figure

DENSITIES = (0.5, 0.25, 0.125, 0.06)
DENSE = 0.25
_PISA = {"method": "pisa", "router": "mean", "dense_steps": DENSE, "dense_layers": 0}
FORMS: dict[str, dict[str, Any]] = {
    "dropped": {**_PISA, "tail": "none"},
    "zeroth": {**_PISA, "tail": "zeroth"},
    "PISA": {**_PISA, "tail": "hybrid"},
    "AdaSpa": {"method": "adaspa", "search_steps": [DENSE, 0.6]},
    "search": {**_PISA, "router": "search", "search_steps": [DENSE, 0.6]},
}


def settings(pipe: Any, steps: int) -> list[Setting]:
    """The plain pipeline, and every form at every density."""
    found = [setting("dense", steps)]
    for density in DENSITIES:
        for name, form in FORMS.items():
            found.append(setting(f"{name}, density {density:g}", steps, {"attention": {**form, "density": density}}))
    return found


if __name__ == "__main__":
    main(
        "sparse_attention",
        "Sparse attention on the built-in model",
        __doc__,
        settings,
        Figure("overall_density", "overall_density", "density over all calls", "{:.3f}"),
    )
