"""Every public operation of the kernels, by module and name, and those that are no work for a device."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from bench.kernels import choices, formats, hidden_states, linears, sequences
from bench.kernels.cases import Place, Variant
from bench.kernels.sizes import Size

_FOLDER = Path(__file__).resolve().parents[2] / "kernels"

OPERATIONS: dict[str, Callable[[Size, Place], list[Variant]]] = {
    **sequences.VARIANTS,
    **choices.VARIANTS,
    **hidden_states.VARIANTS,
    **formats.VARIANTS,
    **linears.VARIANTS,
}

# What is public and not timed, and why.
NOT_TIMED = {
    "arrangement.default_tile": "arithmetic of three numbers",
    "arrangement.let_go_of_arrangements": "drops what is kept",
    "nvfp4_linear.rounding_nvfp4_linear": "what quantized_linear does with NVFP4 activations, which is timed",
    "quantized_linear.emulation": "words about a device",
    "quantized_linear.fitting_scale": "arithmetic of one number",
    "quantized_linear.multiply": "the body of quantized_linear, which is timed",
    "rotation.require_rotatable": "a check of a shape",
    "selection.kept_number": "arithmetic of two numbers",
}
# Modules that hold what operations share, and no operation.
SHARED = {"blocks", "checks", "forms"}


def public_operations() -> set[str]:
    """Functions and methods that the modules of the kernels name in `__all__`, as "module.name"."""
    found = set()
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix != ".py" and not (path / "__init__.py").exists():
            continue
        if path.stem in SHARED:
            continue
        module = importlib.import_module(f"accel.kernels.{path.stem}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                found.add(f"{path.stem}.{name}")
            elif inspect.isclass(value):
                own = (key for key, one in vars(value).items() if inspect.isfunction(one) and not key.startswith("_"))
                found |= {f"{path.stem}.{name}.{key}" for key in own}
    return found
